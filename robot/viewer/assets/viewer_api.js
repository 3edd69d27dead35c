// What the page asks of the server. The key of this run comes in the URL and is then taken out of sight.

const STORED = "ulna-view-token";
const query = new URLSearchParams(location.search);
if (query.has("token")) {
  sessionStorage.setItem(STORED, query.get("token"));
  history.replaceState(null, "", location.pathname + location.hash);
}
export const token = sessionStorage.getItem(STORED) ?? "";

const asked = new Set(); // promises of what was asked for and has not come

/** Keeps count of a request until it is answered. */
export function counted(promise) {
  asked.add(promise);
  const done = () => asked.delete(promise);
  promise.then(done, done);
  return promise;
}

/** When all that was asked for has come, or after a moment: so that no answer is about an episode that just went away. */
export function settled(ms = 400) {
  return Promise.race([Promise.allSettled([...asked]), new Promise((done) => setTimeout(done, ms))]);
}

const headers = token ? { "X-Ulna-Token": token } : {};

/** JSON of `path`; an Error whose message is the server's sentence. */
export async function get(path, options = {}) {
  return (await counted(ask(path, options))).json();
}

/** Little-endian float64. */
export async function numbers(path, options = {}) {
  return new Float64Array(await (await counted(ask(path, options))).arrayBuffer());
}

export async function post(path, body) {
  const sent = { method: "POST", body: JSON.stringify(body) };
  return (await ask(path, { ...sent, headers: { "Content-Type": "application/json" } })).json();
}

async function ask(path, options) {
  let reply;
  try {
    reply = await fetch(path, { ...options, headers: { ...headers, ...options.headers } });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The viewer does not answer: is `ulna data view` still running?");
  }
  if (reply.ok) return reply;
  const said = await reply.json().catch(() => ({}));
  throw Object.assign(new Error(said.error ?? `The viewer answered ${reply.status}.`), { status: reply.status });
}

/** The address of something of an episode. What it answers may be kept, for `v` names the very rows. */
export function of(episode, path, query = {}) {
  const asked = new URLSearchParams({ v: episode.content, ...query });
  return `/api/episodes/${encodeURIComponent(episode.name)}${path}?${asked}`;
}
