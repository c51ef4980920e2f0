// What is asked, as one plain object. The part of the address behind # holds it, and api/search is sent it.
//
// A term is {kind: "text" | "like" | "picture", value, weight}: words, the number of a result to be like, or the number
// of a picture that was given to this page (pictures.js). Below zero a weight excludes.

export const NEAR_DUPLICATE = 0.95; // results whose cosine is above this count as one
export const DIVERSITY = 0.5; // as much for being unlike the other results as for being near the query

const START = {
  mode: "search", words: "", terms: [], where: "", kind: "image", k: 24, unique: false, diverse: false, filters: false,
  open: null, labels: "", subject: null,
};
const KINDS = ["text", "picture", "like"];

// "a beach +at night -people" -> three terms; a sign counts where a word begins, so that "t-shirt" is one word.
export function parse(words) {
  return words.split(/(?:^|\s+)(?=[+-]\S)/).map((piece) => {
    const signed = /^[+-](?=\S)/.test(piece);
    return text(piece.slice(signed ? 1 : 0).trim(), piece[0] === "-" && signed ? -1 : 1);
  }).filter((term) => term.value);
}

export function text(value, weight = 1) {
  return { kind: "text", value, weight };
}

export function like(value) {
  return { kind: "like", value, weight: 1 };
}

// The state of an address; whatever cannot be read there is left out.
export function read(hash) {
  const given = new URLSearchParams(hash.replace(/^#/, ""));
  const k = Number(given.get("k"));
  return {
    mode: given.get("mode") === "classify" ? "classify" : START.mode,
    words: given.get("q") ?? "",
    terms: [...given].filter(([name]) => KINDS.includes(name)).map(readTerm).filter(Boolean),
    where: given.get("where") ?? "",
    kind: given.get("kind") === "text" ? "text" : START.kind,
    k: [12, 24, 48, 96].includes(k) ? k : START.k,
    unique: given.has("unique"),
    diverse: given.has("diverse"),
    filters: given.has("filters"),
    open: number(given.get("open")),
    labels: given.get("labels") ?? "",
    subject: subject(given.get("subject")),
  };
}

// The address of a state: "#" and what differs from the beginning.
export function write(state) {
  const out = new URLSearchParams();
  const put = (name, value, usual) => value !== usual && out.append(name, value === true ? "1" : value);
  put("mode", state.mode, START.mode);
  put("q", state.words, START.words);
  for (const term of state.terms) out.append(term.kind, `${term.weight}:${term.value}`);
  for (const name of ["where", "kind", "k", "unique", "diverse", "filters", "open", "labels"]) put(name, state[name], START[name]);
  if (state.subject) out.append("subject", `${state.subject.kind}:${state.subject.value}`);
  return `#${out}`;
}

// What api/search is sent, without the content of pictures (`pictures`: their numbers, or undefined).
export function request(state, k) {
  const terms = [...state.terms, ...parse(state.words)].filter((term) => term.weight !== 0);
  const [texts, pictures, likes] = KINDS.map((kind) => terms.filter((term) => term.kind === kind));
  const ordered = [...texts, ...pictures, ...likes];
  const values = (of) => (of.length ? of.map((term) => term.value) : undefined);
  return {
    text: values(texts),
    pictures: values(pictures),
    ids: values(likes),
    weights: ordered.some((term) => term.weight !== 1) ? ordered.map((term) => term.weight) : undefined,
    where: state.where.trim() || undefined,
    unique: state.unique ? NEAR_DUPLICATE : undefined,
    diverse: state.diverse ? DIVERSITY : undefined,
    kind: state.kind,
    k,
  };
}

// Is there anything that is wanted? A weight of zero is a way to leave a term out for a while.
export function asks(state) {
  return [...state.terms, ...parse(state.words)].some((term) => term.weight > 0);
}

function readTerm([kind, value]) {
  const [, weight, rest] = /^(-?\d+(?:\.\d+)?):(.*)$/s.exec(value) ?? [null, "1", value];
  const read = kind === "text" ? rest.trim() : number(rest);
  return read === null || read === "" ? null : { kind, value: read, weight: Number(weight) };
}

function subject(value) {
  const [, kind, of] = /^(like|picture):(\d{1,15})$/.exec(value ?? "") ?? [];
  return kind ? { kind, value: Number(of) } : null;
}

function number(value) {
  return /^\d{1,15}$/.test(value ?? "") ? Number(value) : null;
}
