// Asks for what the state says and shows what came: results, their number and time, nothing, or an error.

import { ask } from "./api.js";
import { sent } from "./pictures.js";
import { asks, request } from "./query.js";

const SLOW = 3000; // ms after which a person is told that it goes on
const SKELETONS = 12;

const at = (id) => document.getElementById(id);
const counted = (number) => number.toLocaleString("en");

// `list`: results(). `on` has refused(error, again) and shown(added).
export function searcher(list, on) {
  let asked; // the request whose results are shown or on their way
  let running = null;
  let facts = null; // api/about
  const near = new IntersectionObserver(([entry]) => entry.isIntersecting && more(), { rootMargin: "400px" });
  at("more").addEventListener("click", more);

  return {
    more,
    get hasMore() { return !at("more").hidden; },
    update(state, about) {
      const wanted = asks(state) ? request(state, state.k) : null;
      const unwanted = state.words || state.terms.length;
      if (!wanted) at("told").textContent = unwanted ? "Nothing to search for yet: add something that is wanted" : "";
      if (JSON.stringify(wanted) === JSON.stringify(asked)) return;
      [asked, facts] = [wanted, about];
      running?.abort();
      at("problem").hidden = at("nothing").hidden = true;
      at("start").hidden = Boolean(wanted);
      at("where").removeAttribute("aria-invalid");
      if (wanted) run(wanted.k, false);
      else begin();
    },
  };

  async function more() {
    if (at("more").hidden || at("hits").ariaBusy === "true") return;
    await run(Math.min(facts.limits.k, list.hits.length + asked.k), true);
  }

  async function run(k, added) {
    const wanted = { ...asked, k };
    running = new AbortController();
    const { signal } = running;
    if (!list.hits.length) list.wait(SKELETONS);
    at("hits").ariaBusy = "true";
    const slow = setTimeout(() => (at("told").textContent = "Still searching …"), SLOW);
    try {
      const { pictures, ...body } = wanted;
      const found = await ask("api/search", { ...body, image: pictures?.map(sent) }, signal);
      if (signal.aborted) return; // while the answer was read
      at("hits").ariaBusy = "false";
      show(found, wanted, added);
    } catch (error) {
      if (!signal.aborted) failed(error);
    } finally {
      clearTimeout(slow);
    }
  }

  function show(found, wanted, added) {
    const fresh = list.show(found.hits, added, wanted.kind);
    const shown = list.hits.length;
    at("told").textContent = shown
      ? `${counted(shown)} ${shown === 1 ? "result" : "results"} of ${counted(found.of)}${wanted.where ? " that the filter leaves" : ""}`
      : "No results";
    time(found.ms ?? {});
    at("nothing").hidden = shown > 0;
    at("nothing").querySelector("p").textContent = wanted.where
      ? `The filter leaves ${counted(found.of)} of ${counted(facts.rows)}.` : "There is nothing in this index to be found by it.";
    at("nothing").querySelector("button").hidden = !wanted.where;
    at("more").hidden = found.hits.length < wanted.k || shown >= Math.min(found.of, facts.limits.k) || (added && !fresh);
    near.disconnect();
    near.observe(at("more")); // tells anew whether it is in sight
    on.shown(added);
  }

  function begin() {
    list.show([], false);
    time({});
    at("more").hidden = true;
    at("hits").ariaBusy = "false";
  }

  function failed(error) {
    const wanted = asked;
    asked = undefined; // nothing is shown
    const again = () => {
      asked = wanted;
      run(wanted.k, false);
    };
    at("hits").ariaBusy = "false";
    if (!list.hits.length) list.show([], false); // the waiting ones go
    at("told").textContent = "";
    time({});
    at("more").hidden = true;
    if (error.status === 400 && wanted.where) at("where").ariaInvalid = "true";
    on.refused(error, again);
  }
}

function time(ms) {
  const stages = Object.entries(ms);
  at("timing").textContent = stages.length ? `${Math.round(stages.reduce((sum, [, each]) => sum + each, 0))} ms` : "";
  at("timing").title = stages.map(([stage, each]) => `${stage} ${each.toFixed(1)} ms`).join(", ");
}
