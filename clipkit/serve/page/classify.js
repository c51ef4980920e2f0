// Which of the words typed in fits a picture: one that was given to the page, or a result.

import { ask, content } from "./api.js";
import { name, thumbnail } from "./results.js";
import * as pictures from "./pictures.js";

const SHOWN = 20;

// `go` changes the state (labels); `refused` is told of errors first and says whether it has dealt with them.
export function classifier(go, refused) {
  const at = (id) => document.getElementById(id);
  const [picture, drawn, told, problem, scores] = ["subject-picture", "subject-drawn", "classified", "misclassified", "scores"].map(at);
  let subject = null; // as it is shown
  let asked = "";
  let running = null;

  at("labelling").addEventListener("submit", (event) => {
    event.preventDefault();
    asked = ""; // the same may be asked again
    go({ labels: at("labels").value.trim() });
  });
  picture.addEventListener("error", () => problem.hidden && tell("This picture cannot be shown."));

  return { render };

  function render(state) {
    if (at("labels").value.trim() !== state.labels) at("labels").value = state.labels;
    if (subject?.kind !== state.subject?.kind || subject?.value !== state.subject?.value) put(state.subject);
    const labels = parsed(state.labels);
    const key = JSON.stringify([state.subject, labels]);
    if (key === asked) return;
    asked = key;
    running?.abort();
    scores.replaceChildren();
    told.textContent = "";
    problem.hidden = true;
    if (state.subject && labels.length) classify(labels);
  }

  function put(wanted) {
    subject = wanted;
    picture.hidden = wanted?.kind !== "like";
    drawn.hidden = wanted?.kind !== "picture";
    at("subject-none").hidden = Boolean(wanted);
    at("subject-choose").textContent = wanted ? "Another picture" : "Choose a picture";
    if (wanted?.kind === "like") {
      picture.src = thumbnail(wanted.value, 512);
      picture.alt = `Result ${wanted.value}`;
      ask(`api/item/${wanted.value}`).then(({ record }) => { if (subject === wanted) picture.alt = name(record); }, () => {});
    } else if (wanted) {
      pictures.draw(wanted.value, drawn);
    }
  }

  async function classify(labels) {
    running = new AbortController();
    const { signal } = running;
    told.textContent = "Classifying …";
    scores.setAttribute("aria-busy", "true");
    try {
      const image = subject.kind === "picture" ? pictures.sent(subject.value)
        : await pictures.encoded(await content(`api/picture/${subject.value}`, signal));
      const found = (await ask("api/classify", { image, labels }, signal)).scores;
      show(found.toSorted((a, b) => b.probability - a.probability));
    } catch (error) {
      if (signal.aborted) return;
      asked = "";
      told.textContent = "";
      if (!refused(error)) tell(error.message);
    } finally {
      if (!signal.aborted) scores.removeAttribute("aria-busy");
    }
  }

  function show(found) {
    scores.replaceChildren(...found.slice(0, SHOWN).map(({ label, probability }) => {
      const item = document.querySelector("template#score").content.firstElementChild.cloneNode(true);
      item.querySelector(".label").textContent = label;
      item.querySelector(".rail span").style.width = `${100 * probability}%`;
      item.querySelector(".share").textContent = percent(probability);
      return item;
    }));
    const more = found.length > SHOWN ? ` The ${SHOWN} most probable of ${found.length} labels are shown.` : "";
    told.textContent = `Most probable: ${found[0].label}, ${percent(found[0].probability)}.${more}`;
  }

  function tell(line) {
    problem.hidden = false;
    problem.firstElementChild.textContent = line;
  }
}

function parsed(labels) {
  return [...new Set(labels.split(/[,\n]/).map((label) => label.trim()).filter(Boolean))];
}

function percent(share) {
  return share > 0 && share < 0.001 ? "< 0.1 %" : `${(100 * share).toFixed(1)} %`;
}
