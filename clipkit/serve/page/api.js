// Questions to the server that this page came from. Addresses are relative, so that a proxy may put it under a folder.

const PATIENCE = 60_000; // ms

export class Refused extends Error {
  constructor(line, status) {
    super(line);
    this.status = status; // 0: no answer at all
  }
}

// GET without a body, POST with one. A server that is busy (429, 503) is asked twice more, when it said.
export async function ask(path, body, signal) {
  for (let attempt = 0; ; attempt++) {
    const response = await sent(path, body, signal);
    if (response.ok) return response.json();
    if (![429, 503].includes(response.status) || attempt === 2) throw new Refused(await line(response), response.status);
    await wait(1000 * Math.min(Number(response.headers.get("Retry-After")) || 1, 10), signal);
  }
}

// The server answers a right token with a cookie.
export async function give(token) {
  const response = await sent(`./?token=${encodeURIComponent(token)}`);
  if (!response.ok) throw new Refused(response.status === 401 ? "That is not its token." : await line(response), response.status);
}

export async function content(path, signal) {
  const response = await sent(path, undefined, signal);
  if (!response.ok) throw new Refused(await line(response), response.status);
  return response.blob();
}

async function sent(path, body, signal) {
  const stop = AbortSignal.timeout(PATIENCE);
  const options = { signal: signal ? AbortSignal.any([signal, stop]) : stop };
  if (body !== undefined) {
    Object.assign(options, { method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json" } });
  }
  try {
    return await fetch(path, options);
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Refused(stop.aborted ? "The server takes too long." : "The server does not answer. Is it still running?", 0);
  }
}

async function line(response) {
  const found = await response.json().catch(() => null);
  return typeof found?.error === "string" ? found.error : `The server answered ${response.status}.`;
}

function wait(ms, signal) {
  return new Promise((done, failed) => {
    const timer = setTimeout(done, ms);
    signal?.addEventListener("abort", () => (clearTimeout(timer), failed(signal.reason)), { once: true });
  });
}
