// Conditions on the records. There is one truth, the SQL box; the form beside it writes into the box.

const NUMBERS = ["INTEGER", "REAL"];

// `columns`: {name: SQL type}; `apply` gets the condition.
export function filters(columns, apply) {
  const at = (id) => document.getElementById(id);
  const [where, column] = ["where", "column"].map(at);
  const names = Object.keys(columns);

  at("condition").addEventListener("submit", (event) => (event.preventDefault(), apply(where.value.trim())));
  at("clear").addEventListener("click", () => {
    where.value = "";
    apply("");
  });
  where.addEventListener("input", offer);
  at("columns").replaceChildren(...names.map(listed));
  at("simple").hidden = !names.length;
  column.replaceChildren(...names.map((each) => new Option(each)));
  column.addEventListener("change", fit);
  at("simple").addEventListener("submit", (event) => {
    event.preventDefault();
    const [low, high, value] = ["low", "high", "value"].map((id) => at(id).value.trim());
    const made = condition(column.value, columns[column.value], { low, high, value, how: at("how").value });
    if (!made) return;
    for (const id of ["low", "high", "value"]) at(id).value = "";
    const already = where.value.trim();
    apply(already ? `${/\bor\b/i.test(already) ? `(${already})` : already} and ${made}` : made);
  });
  fit();

  function fit() {
    const numeric = NUMBERS.includes(columns[column.value]);
    at("range").hidden = !numeric;
    at("equal").hidden = numeric;
  }

  // Of the columns only those that the word at the caret begins, where it begins any.
  function offer() {
    const word = /[\w.]*$/.exec(where.value.slice(0, where.selectionStart))[0].toLowerCase();
    const fits = (each) => word && each.toLowerCase().startsWith(word) && each.toLowerCase() !== word;
    const some = names.some(fits);
    at("columns").childNodes.forEach((item, i) => (item.hidden = some && !fits(names[i])));
  }

  function listed(each) {
    const [item, button, type] = ["li", "button", "span"].map((tag) => document.createElement(tag));
    type.textContent = NUMBERS.includes(columns[each]) ? "number" : "text";
    button.append(each, " ", type);
    button.type = "button";
    button.addEventListener("click", () => insert(each));
    item.append(button);
    return item;
  }

  // Put a column where the caret is, in place of the word begun.
  function insert(each) {
    const before = where.value.slice(0, where.selectionStart).replace(/[\w.]*$/, (word) => (each.toLowerCase().startsWith(word.toLowerCase()) ? "" : word));
    const after = where.value.slice(where.selectionEnd);
    where.value = `${before}${quoted(each)} ${after.trimStart()}`;
    const caret = before.length + quoted(each).length + 1;
    where.focus();
    where.setSelectionRange(caret, caret);
    offer();
  }
}

// The SQL of a filled form, "" of an empty one.
export function condition(name, type, { low, high, value, how }) {
  const column = quoted(name);
  if (NUMBERS.includes(type)) {
    return [low !== "" && `${column} >= ${low}`, high !== "" && `${column} <= ${high}`].filter(Boolean).join(" and ");
  }
  if (value === "") return "";
  const literal = `'${value.replaceAll("'", "''")}'`;
  return how === "holds" ? `instr(lower(${column}), lower(${literal})) > 0` : `${column} = ${literal}`;
}

const WORDS = /^(and|or|not|in|is|null|like|between|case|when|then|else|end|group|order|index|select|from|where|key|set|table|values|to|by|on|as)$/i;

function quoted(name) {
  return /^[A-Za-z_]\w*$/.test(name) && !WORDS.test(name) ? name : `"${name.replaceAll('"', '""')}"`;
}
