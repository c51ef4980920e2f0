// The page: one state, held in the address; everything on the screen follows from it.

import { ask, give, Refused } from "./api.js";
import { classifier } from "./classify.js";
import { filters } from "./filters.js";
import { listen } from "./gestures.js";
import * as pictures from "./pictures.js";
import { like, parse, read, write } from "./query.js";
import { results } from "./results.js";
import { searcher } from "./search.js";
import { terms } from "./terms.js";
import { viewer } from "./view.js";

const REST = 250; // ms without a key after which what was typed is searched
const FINAL = [400, 404, 413, 422]; // the same again would be refused again
const LIMITS = { upload_mb: 10, k: 500 }; // until the server has told its own

const at = (id) => document.getElementById(id);
let state = read(location.hash);
let about = null;
let typing = null; // the timer of a search that waits for the next key; null: the state knows what the box holds
let typed = false; // this entry of the history holds what is being typed
let lost = false; // a picture that the address names is not there any more, which is still to be told
let focusing = false; // the results to come take the focus

const list = results(at("hits"), {
  open: (number) => go({ open: list.hits[number].id }),
  like: alike,
  leave: () => at("words").focus(),
});
const search = searcher(list, { refused, shown });
const labelled = classifier(go, unlock);
const chips = terms(at("terms"), (changed) => go({ terms: changed }));
const view = viewer(at("view"), {
  close: () => (history.state?.opened ? history.back() : go({ open: null }, "replace")),
  step,
  like: alike,
}, (hit) => write({ ...state, open: null, mode: "classify", subject: like(hit.id) }));

// The state of the address, among the kinds of rows that there are.
function addressed() {
  const found = read(location.hash);
  return !about || about.kinds.includes(found.kind) ? found : { ...found, kind: about.kinds[0] };
}

// Change the state; `how`: "push" makes an entry in the history, "replace" changes the one that is there.
function go(changes, how = "push") {
  const begun = typing === null ? {} : { words: at("words").value.trim() };
  rest();
  state = { ...state, ...begun, ...changes };
  const address = write(state);
  if (how === "push" && address !== (location.hash || "#")) history.pushState({ opened: changes.open != null }, "", address);
  else history.replaceState(history.state, "", address);
  render();
}

function rest() {
  clearTimeout(typing);
  typing = null;
  typed = false;
}

function render() {
  lost = forget() || lost;
  const searching = state.mode === "search";
  at("searching").hidden = !searching;
  at("classifying").hidden = searching;
  renderHead(searching);
  chips.render(state.terms);
  renderFilters();
  if (!about) return;
  if (searching) search.update(state, about);
  else labelled.render(state);
  open();
  if (lost) say("A picture of this search was lost when the page was loaded again. Drop it once more.");
  lost = false;
}

function renderHead(searching) {
  at("to-search").ariaCurrent = searching ? "page" : null;
  at("to-classify").ariaCurrent = searching ? null : "page";
  at("to-search").href = write({ ...state, mode: "search", open: null });
  const subject = state.subject ?? state.terms.find((term) => term.kind !== "text") ?? null;
  at("to-classify").href = write({ ...state, mode: "classify", open: null, subject });
  if (typing === null && at("words").value.trim() !== state.words) at("words").value = state.words;
  at("add").disabled = at("exclude").disabled = !at("words").value.trim();
  const words = [...state.terms.filter((term) => term.kind === "text").map((term) => term.value), state.words];
  document.title = [searching ? words.filter(Boolean).join(", ") : "Classify", about?.name || "clipkit search"].filter(Boolean).join(" · ");
}

function renderFilters() {
  at("filters").hidden = !state.filters;
  at("to-filters").ariaExpanded = String(state.filters);
  const count = [state.where, state.unique, state.diverse, about && state.kind !== about.kinds[0]].filter(Boolean).length;
  at("filtered").textContent = count ? ` · ${count}` : "";
  if (at("where").dataset.applied !== state.where) at("where").value = at("where").dataset.applied = state.where;
  at("k").value = state.k;
  for (const id of ["unique", "diverse"]) at(id).checked = state[id];
  for (const choice of document.getElementsByName("kind")) choice.checked = choice.value === state.kind;
}

// Take out the pictures that an address names and this tab does not hold; were there any?
function forget() {
  const lost = (term) => term?.kind === "picture" && !pictures.has(term.value);
  if (!state.terms.some(lost) && !lost(state.subject)) return false;
  state = { ...state, terms: state.terms.filter((term) => !lost(term)), subject: lost(state.subject) ? null : state.subject };
  history.replaceState(history.state, "", write(state));
  return true;
}

function alike(hit) {
  focusing = true;
  scrollTo({ top: 0 });
  go({ words: "", terms: [like(hit.id)], open: null, mode: "search" });
}

function shown(added) {
  open();
  if (focusing && !added) list.focus();
  if (!added) focusing = false;
}

// Show the result that the address names, or none.
async function open() {
  const { open: id } = state;
  const last = view.shown?.id;
  if (id === null) {
    view.hide();
    if (last !== undefined) list.focus(last);
    return;
  }
  const number = list.hits.findIndex((hit) => hit.id === id);
  if (number >= 0) view.show(list.hits[number], number > 0, number + 1 < list.hits.length || search.hasMore);
  if (number >= 0 || last === id) return;
  try {
    const { record } = await ask(`api/item/${id}`);
    if (state.open === id && view.shown?.id !== id) view.show(record, false, false);
  } catch (error) {
    go({ open: null }, "replace");
    refused(error, null);
  }
}

async function step(by) {
  const to = list.hits.findIndex((hit) => hit.id === state.open) + by;
  if (to === list.hits.length) await search.more();
  if (to >= 0 && to < list.hits.length) go({ open: list.hits[to].id }, "replace");
}

async function take(file) {
  at("problem").hidden = true;
  try {
    const term = { kind: "picture", value: await pictures.keep(file, about?.limits ?? LIMITS), weight: 1 };
    go(state.mode === "classify" ? { subject: term, labels: at("labels").value.trim() } : { words: "", terms: [term], open: null });
  } catch (error) {
    say(error.message);
  }
}

function refused(error, again) {
  if (unlock(error)) return;
  say(error.message, FINAL.includes(error.status) ? null : again);
  if (!(error instanceof Refused)) throw error; // a fault of this page
}

function say(line, again) {
  const [words, button] = at("problem").children;
  words.textContent = line;
  button.hidden = !again;
  button.onclick = () => {
    at("problem").hidden = true;
    again();
  };
  at("problem").hidden = false;
}

// Asks for the token, where that is what was missing.
function unlock(error) {
  if (error.status !== 401) return false;
  at("token").hidden = false;
  at("secret").focus();
  return true;
}

// Of several terms in the box, or one with a sign, each becomes one beside it; a single one stays to be changed.
function enter(sign) {
  const words = at("words").value.trim();
  const own = parse(words);
  if (own.length === 1 && sign) own[0].weight *= sign;
  const signed = own.length > 1 || /^[+-]/.test(words);
  if (own.length && (sign || signed)) go({ words: "", terms: [...state.terms, ...own], mode: "search", open: null });
  else go({ words, mode: "search", open: null });
}

function control() {
  at("search").addEventListener("submit", (event) => (event.preventDefault(), enter()));
  at("words").addEventListener("input", () => {
    at("add").disabled = at("exclude").disabled = !at("words").value.trim();
    clearTimeout(typing);
    typing = setTimeout(() => {
      go({ words: at("words").value.trim(), mode: "search" }, typed ? "replace" : "push");
      typed = true;
    }, REST);
  });
  at("words").addEventListener("keydown", (event) => {
    if (event.key === "ArrowDown" && list.hits.length) (event.preventDefault(), list.focus());
  });
  for (const [id, sign] of [["add", 1], ["exclude", -1]]) at(id).addEventListener("click", () => (enter(sign), at("words").focus()));
  const toggle = () => go({ filters: !state.filters }, "replace");
  at("to-filters").addEventListener("click", toggle);
  at("nothing").querySelector("button").addEventListener("click", () => go({ where: "" }));
  for (const id of ["unique", "diverse"]) at(id).addEventListener("change", () => go({ [id]: at(id).checked }));
  at("k").addEventListener("change", () => go({ k: Number(at("k").value) }));
  at("kinds").addEventListener("change", (event) => go({ kind: event.target.value }));
  at("token").addEventListener("submit", async (event) => {
    event.preventDefault();
    try {
      await give(at("secret").value);
      at("token").hidden = at("problem").hidden = true;
      if (about) render();
      else start();
    } catch (error) {
      say(error.message);
    }
  });
  addEventListener("hashchange", () => {
    rest();
    state = addressed();
    render();
  });
  listen({ take, say, filters: toggle, jump: () => (at("words").focus(), at("words").select()) });
}

async function start() {
  try {
    about = await ask("api/about");
  } catch (error) {
    return refused(error, start);
  }
  state = addressed();
  at("home").textContent = about.name || "clipkit search";
  at("kinds").hidden = about.kinds.length < 2;
  filters(about.columns, (where) => go({ where }));
  describe();
  render();
}

function describe() {
  const rows = `${about.rows.toLocaleString("en")} ${about.kinds.includes("image") ? (about.rows === 1 ? "picture" : "pictures") : "captions"}`;
  at("start").querySelector("h2").textContent = `Search ${rows}`;
  at("examples").replaceChildren(...(about.examples ?? []).slice(0, 6).map((caption) => {
    const [item, button] = ["li", "button"].map((tag) => document.createElement(tag));
    button.type = "button";
    button.textContent = caption;
    button.addEventListener("click", () => go({ words: caption }));
    item.append(button);
    return item;
  }));
  const recall = about.recall?.image ?? about.recall?.text;
  const found = recall ? `finds ${Math.round(100 * recall)} % of what an exact search finds` : "";
  at("about").textContent = [rows, about.model, found].filter(Boolean).join(" · ");
}

control();
render();
start();
