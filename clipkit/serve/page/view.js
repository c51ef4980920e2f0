// One result, large: its picture, what is known of it, and where to go from it.

import { guard, name, thumbnail } from "./results.js";

const LARGEST = 4; // times its own size

// `on` has close(), step(1 | -1), like(hit). `classify` gives the address at which a hit is classified.
export function viewer(dialog, on, classify) {
  const [image, title, facts] = ["img", "h2", "dl"].map((each) => dialog.querySelector(each));
  const button = (which) => dialog.querySelector(`.${which}`);
  let shown = null;
  let touched = null;

  guard(image);
  button("close").onclick = () => dialog.close();
  button("like").onclick = () => on.like(shown);
  button("previous").onclick = () => on.step(-1);
  button("next").onclick = () => on.step(1);
  dialog.addEventListener("close", () => shown && on.close());
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close()); // beside the dialog's content
  dialog.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (step) on.step(step);
    else if (event.key === "m" && !event.ctrlKey && !event.metaKey) on.like(shown);
    else return;
    event.preventDefault();
  });
  image.addEventListener("touchstart", (event) => (touched = event.touches.length === 1 ? event.touches[0] : null), { passive: true });
  image.addEventListener("touchend", (event) => {
    const [right, down] = ["clientX", "clientY"].map((axis) => event.changedTouches[0][axis] - (touched?.[axis] ?? NaN));
    if (Math.abs(right) > 60 && Math.abs(right) > 2 * Math.abs(down)) on.step(right > 0 ? -1 : 1);
  });

  return {
    get shown() { return shown; },
    // `before`, `after`: is there a result on this side of it?
    show(hit, before, after) {
      if (shown?.id !== hit.id) fill(hit);
      for (const [which, there] of [["previous", before], ["next", after]]) {
        button(which).disabled = !there;
      }
      if (!dialog.open) dialog.showModal();
    },
    hide() {
      shown = null;
      if (dialog.open) dialog.close();
    },
  };

  function fill(hit) {
    shown = hit;
    image.removeAttribute("src"); // or the last one would stay until the next has come
    image.parentElement.classList.remove("broken");
    image.alt = name(hit);
    if (hit.width && hit.height) Object.assign(image, { width: hit.width, height: hit.height });
    image.style.maxWidth = hit.width ? `${LARGEST * hit.width}px` : "";
    image.src = thumbnail(hit.id, 1024);
    title.textContent = name(hit);
    button("classify").href = classify(hit);
    const original = `api/picture/${hit.id}`;
    Object.assign(button("original"), { href: original });
    Object.assign(button("download"), { href: original, download: hit.key.split("/").at(-1) || `${hit.id}` });
    facts.replaceChildren(...described(hit).flatMap(([what, value]) => [element("dt", what), element("dd", value)]));
    dialog.querySelector(".facts").scrollTop = 0;
  }
}

function described(hit) {
  const size = hit.width && hit.height ? `${hit.width} × ${hit.height}` : null;
  const own = [["score", hit.score?.toFixed(4)], ["key", hit.key], ["size", size], ["row", hit.id]];
  const more = Object.entries(hit.fields ?? {}).filter(([what]) => !["caption", "key", "width", "height"].includes(what));
  return [...own, ...more]
    .filter(([, value]) => value !== null && value !== undefined && value !== "")
    .map(([what, value]) => [what, typeof value === "object" ? JSON.stringify(value) : String(value)]);
}

function element(tag, content) {
  const made = document.createElement(tag);
  made.textContent = content;
  return made;
}
