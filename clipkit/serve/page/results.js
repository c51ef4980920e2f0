// The results: a list of pictures in rows, whole and as wide as their shapes ask for, that the arrow keys walk through.

const WIDEST = 2.2; // pictures of other shapes are cut to these
const NARROWEST = 0.6;

// `on` has open(number in the list) and like(hit). One result at a time is reached by Tab, the arrows go on from it.
export function results(list, on) {
  let hits = [];
  let current = 0;
  const items = () => [...list.querySelectorAll(".hit:not(.waiting)")];

  function reach(number, focus) {
    const all = items();
    if (!all.length) return;
    current = Math.max(0, Math.min(number, all.length - 1));
    all.forEach((item, i) => item.querySelectorAll("button").forEach((button) => (button.tabIndex = i === current ? 0 : -1)));
    if (focus) all[current].querySelector(".open").focus();
  }

  list.addEventListener("focusin", (event) => {
    const number = items().indexOf(event.target.closest(".hit"));
    if (number >= 0 && number !== current) reach(number, false);
  });
  list.addEventListener("click", (event) => {
    const number = items().indexOf(event.target.closest(".hit"));
    if (number < 0) return;
    if (event.target.closest(".like")) on.like(hits[number]);
    else if (event.target.closest(".open")) on.open(number);
  });
  list.addEventListener("keydown", (event) => {
    if (!hits.length || event.ctrlKey || event.metaKey || event.altKey) return;
    const to = target(event.key, items(), current);
    if (to === null && event.key !== "m") return;
    event.preventDefault();
    if (event.key === "m") on.like(hits[current]);
    else if (to < 0) on.leave();
    else reach(to, true);
  });

  return {
    get hits() { return hits; },
    focus: (id) => reach(id === undefined ? current : hits.findIndex((hit) => hit.id === id), true),
    // Show `found`; `added`: those that are shown already stay as they are.
    show(found, added, kind) {
      const known = new Set(added ? hits.map((hit) => hit.id) : []);
      const fresh = found.filter((hit) => !known.has(hit.id));
      list.querySelectorAll(".waiting").forEach((item) => item.remove());
      if (!added) list.replaceChildren();
      hits = added ? [...hits, ...fresh] : fresh;
      list.append(...fresh.map(drawn));
      list.classList.toggle("captions", kind === "text");
      reach(added ? current : 0, false);
      return fresh.length;
    },
    wait(count) {
      const shapes = [1, 1.4, 0.8, 1.2, 1, 0.9];
      const waiting = Array.from({ length: count }, (_, i) => {
        const item = document.createElement("li");
        item.className = "hit waiting";
        item.setAttribute("aria-hidden", "true");
        item.style.setProperty("--shape", shapes[i % shapes.length]);
        return item;
      });
      hits = [];
      list.replaceChildren(...waiting);
    },
  };
}

export const thumbnail = (id, side) => `api/thumb/${id}?side=${side}`;

export const name = (hit) => hit.caption || hit.key || `number ${hit.id}`;

// Where a picture is missing, its place stays and says so.
export function guard(image) {
  image.addEventListener("error", () => image.parentElement.classList.add("broken"));
  image.addEventListener("load", () => image.parentElement.classList.remove("broken"));
}

// Captions and keys come from strangers: they are only ever set as text.
function drawn(hit) {
  const item = document.querySelector("template#hit").content.firstElementChild.cloneNode(true);
  const [open, like, image] = [".open", ".like", "img"].map((each) => item.querySelector(each));
  const shape = Math.min(WIDEST, Math.max(NARROWEST, hit.width && hit.height ? hit.width / hit.height : 1));
  item.style.setProperty("--shape", shape);
  Object.assign(image, { width: Math.round(256 * shape), height: 256, alt: name(hit) });
  guard(image);
  image.sizes = "(max-width: 40rem) 50vw, 20rem";
  image.srcset = `${thumbnail(hit.id, 256)} 256w, ${thumbnail(hit.id, 512)} 512w`;
  image.src = thumbnail(hit.id, 256);
  item.querySelector(".caption").textContent = name(hit);
  item.querySelector(".score").textContent = hit.score.toFixed(3);
  open.setAttribute("aria-label", `${name(hit)}, score ${hit.score.toFixed(3)}`);
  like.setAttribute("aria-label", `More like ${name(hit)}`);
  return item;
}

// The number that a key leads to: null where it leads nowhere, -1 out of the list upwards.
function target(key, items, current) {
  const steps = { ArrowLeft: current - 1, ArrowRight: current + 1, Home: 0, End: items.length - 1 };
  if (key in steps) return Math.max(0, Math.min(steps[key], items.length - 1));
  if (key !== "ArrowUp" && key !== "ArrowDown") return null;
  const boxes = items.map((item) => item.getBoundingClientRect());
  const here = boxes[current];
  const up = key === "ArrowUp";
  const beyond = boxes.filter((box) => (up ? box.bottom <= here.top + 1 : box.top >= here.bottom - 1));
  if (!beyond.length) return up ? -1 : items.length - 1;
  const row = up ? Math.max(...beyond.map((box) => box.top)) : Math.min(...beyond.map((box) => box.top));
  const middle = (box) => box.left + box.width / 2;
  const distance = (box) => (Math.abs(box.top - row) > 2 ? Infinity : Math.abs(middle(box) - middle(here)));
  return boxes.reduce((best, box, i) => (distance(box) < distance(boxes[best]) ? i : best), boxes.indexOf(beyond[0]));
}
