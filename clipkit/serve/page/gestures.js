// What hands and keys do anywhere on the page: drop, paste or choose a picture, jump by a key.

const at = (id) => document.getElementById(id);

// `on` has take(file), say(line), jump(), filters().
export function listen(on) {
  drops(on);
  document.addEventListener("paste", (event) => {
    const [file] = event.clipboardData?.files ?? [];
    const words = event.target.matches?.("input") && event.clipboardData.types.includes("text/plain");
    if (!file || words) return; // office programs put a picture of the words beside them
    event.preventDefault();
    on.take(file);
  });
  at("file").addEventListener("change", () => {
    const [file] = at("file").files;
    if (file) on.take(file);
    at("file").value = ""; // the same file may be chosen again
  });
  for (const id of ["choose", "subject-choose"]) at(id).addEventListener("click", () => at("file").click());

  at("to-help").addEventListener("click", () => at("help").showModal());
  at("help").addEventListener("click", (event) => (event.target === at("help") || event.target.closest(".close")) && at("help").close());
  at("skip").addEventListener("click", (event) => (event.preventDefault(), at("hits").focus()));
  document.addEventListener("keydown", (event) => {
    const elsewhere = event.target.closest?.("input, select, textarea, dialog");
    if (elsewhere || event.ctrlKey || event.metaKey || event.altKey) return;
    const act = { "/": on.jump, "?": () => at("help").showModal(), f: on.filters }[event.key];
    if (!act) return;
    event.preventDefault();
    act();
  });
}

function drops(on) {
  let leaving = null;
  document.addEventListener("dragover", (event) => {
    if (!event.dataTransfer.types.includes("Files")) return;
    event.preventDefault();
    at("drop").hidden = false;
    clearTimeout(leaving);
    leaving = setTimeout(() => (at("drop").hidden = true), 300); // no event tells reliably that it has left
  });
  document.addEventListener("drop", (event) => {
    at("drop").hidden = true;
    const { files, types } = event.dataTransfer;
    if (!files.length && !types.includes("text/uri-list")) return; // words, into a box
    event.preventDefault();
    if (files.length) on.take(files[0]);
    else on.say("Drop the picture's file: this page fetches nothing from other places.");
  });
}
