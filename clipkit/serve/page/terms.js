// The terms beside the words in the box: each with its weight and a way to take it out.

import * as pictures from "./pictures.js";
import { thumbnail } from "./results.js";

// `changed` gets the terms as they are after a person has changed one.
export function terms(list, changed) {
  let shown = [];
  return { render };

  function render(wanted) {
    const same = JSON.stringify(wanted.map(({ kind, value }) => [kind, value])) === JSON.stringify(shown.map(({ kind, value }) => [kind, value]));
    shown = wanted;
    if (!same) list.replaceChildren(...wanted.map(drawn));
    list.querySelectorAll("input").forEach((input, i) => (input.value = wanted[i].weight));
    list.querySelectorAll(".term").forEach((item, i) => item.classList.toggle("against", wanted[i].weight < 0));
    list.hidden = !wanted.length;
  }

  function drawn(term, i) {
    const item = document.querySelector("template#term").content.firstElementChild.cloneNode(true);
    const [image, canvas, weight, remove] = ["img", "canvas", "input", "button"].map((each) => item.querySelector(each));
    const called = { text: term.value, like: "Like this", picture: "Your picture" }[term.kind];
    item.querySelector(".name").textContent = called;
    image.hidden = term.kind !== "like";
    canvas.hidden = term.kind !== "picture";
    if (term.kind === "like") image.src = thumbnail(term.value, 128);
    if (term.kind === "picture") pictures.draw(term.value, canvas, true);
    weight.setAttribute("aria-label", `Weight of ${called}`);
    remove.setAttribute("aria-label", `Remove ${called}`);
    weight.addEventListener("change", () => {
      const value = Math.max(-4, Math.min(4, Number(Number(weight.value).toFixed(2))));
      changed(shown.map((each, j) => (j === i ? { ...each, weight: value } : each)));
    });
    remove.addEventListener("click", () => changed(shown.filter((_, j) => j !== i)));
    return item;
  }
}
