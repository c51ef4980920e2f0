// Pictures that a person gives to the page: dropped, pasted or chosen. They stay in this tab and go to the server only
// as a part of a question.

const AS_THEY_ARE = ["image/jpeg", "image/png", "image/webp"]; // others (HEIC, AVIF, ...) are sent as JPEG
const PREVIEW = 1024; // pixels on the longer side, also of what would be too large to send
const held = new Map(); // number -> {preview: canvas, base64}
let last = 0;

export const has = (number) => held.has(number);
export const sent = (number) => held.get(number).base64;

// Keep a file; gives its number. `limits` are those of api/about. Throws an Error with a line for people.
export async function keep(file, limits) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    throw new Error(`${file.name || "That"} is not a picture that this browser can read.`);
  }
  const fits = file.size <= limits.upload_mb * 1_000_000
    && bitmap.width * bitmap.height <= (limits.pixels ?? Infinity);
  const preview = drawn(bitmap, PREVIEW);
  const same = fits && AS_THEY_ARE.includes(file.type);
  const content = same ? file : await jpeg(fits ? drawn(bitmap, Infinity) : preview);
  bitmap.close();
  const base64 = await encoded(content);
  held.set(++last, { preview, base64 });
  return last;
}

// Draw a picture that is held into a canvas: whole, or with `fill` its middle, in the canvas's own size.
export function draw(number, canvas, fill = false) {
  const { preview } = held.get(number);
  if (!fill) Object.assign(canvas, { width: preview.width, height: preview.height });
  const side = fill ? Math.min(preview.width, preview.height) : null;
  const part = fill ? [(preview.width - side) / 2, (preview.height - side) / 2, side, side] : [0, 0, preview.width, preview.height];
  canvas.getContext("2d").drawImage(preview, ...part, 0, 0, canvas.width, canvas.height);
}

// The content of a file, as JSON can hold it.
export async function encoded(blob) {
  const reader = new FileReader();
  await new Promise((done, failed) => {
    Object.assign(reader, { onload: done, onerror: () => failed(reader.error) });
    reader.readAsDataURL(blob);
  });
  return reader.result.slice(reader.result.indexOf(",") + 1);
}

function drawn(bitmap, side) {
  const scale = Math.min(1, side / Math.max(bitmap.width, bitmap.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const paint = canvas.getContext("2d");
  paint.fillStyle = "#fff"; // JPEG knows no transparency
  paint.fillRect(0, 0, canvas.width, canvas.height);
  paint.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return canvas;
}

function jpeg(canvas) {
  return new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.92));
}
