// Speaks to the server in its HTTP API, and remembers what this browser (keep) and this tab (tab) should. No other machine is asked.
export const find = (selector, within = document) => within.querySelector(selector);
export const all = (selector, within = document) => [...within.querySelectorAll(selector)];
export const make = (tag, values) => Object.assign(document.createElement(tag), values);
export const calm = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

const memory = (storage) => ({
  get: (name) => { try { return storage().getItem("lumos " + name); } catch { return null; } },
  set: (name, value) => { try { storage().setItem("lumos " + name, value); } catch { /* private windows */ } },
  drop: (name) => { try { storage().removeItem("lumos " + name); } catch { /* private windows */ } },
});
export const keep = memory(() => localStorage);
export const tab = memory(() => sessionStorage);

const client = keep.get("client") || [...crypto.getRandomValues(new Uint8Array(16))].map((b) => b.toString(16).padStart(2, "0")).join("");
keep.set("client", client);

export const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");
export const address = (video, query = "") => `v1/videos/${video.id}/content${query}`;

// One request; its JSON, or an Error with words for people.
export async function ask(method, path, body, more = {}) {
  const headers = { "X-Client-Id": client };
  if (body && !(body instanceof FormData)) { headers["Content-Type"] = "application/json"; body = JSON.stringify(body); }
  let answer;
  try {
    answer = await fetch(path, { method, headers, body, ...more });
  } catch {
    throw new Error("The server cannot be reached. Is it still running?");
  }
  const values = await answer.json().catch(() => ({}));
  if (answer.status === 401) location.assign("login");
  if (!answer.ok) throw new Error(sentence(values.error ? values.error.message : `The server answered with ${answer.status}.`));
  return values;
}
