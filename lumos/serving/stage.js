// The stage: follows one video, shows its frames as they come and the finished file. What people or the server say is put there as text.
import { find, all, make, ask, address, calm, sentence, tab } from "./client.js";

const stage = find("#stage");
const part = (name) => find(name, stage);
let source = null; // the open event stream
let frames = []; // pictures so far
let turning = 0; // timer of the loop over them
let beat = 0; // news of this video so far
let since = null; // when making was first seen, and the progress then
export let shown = null; // the document of the video on the stage
export const facts = {}; // what the server says of its model
export const changed = { call: () => {} }; // called when a video has begun or ended

export function watch(video) {
  stage.dispatchEvent(new Event("taken"));
  if (source) source.close();
  clearInterval(turning);
  frames = [];
  since = null;
  tab.set("watching", video.id);
  hideAll();
  slots(video.frames);
  tell(video);
  changed.call();
  if (video.status === "completed") return finish(video);
  if (video.status === "failed") return;
  const events = source = new EventSource(`v1/videos/${video.id}/events`);
  events.addEventListener("frames", (event) => addFrames(JSON.parse(event.data)));
  events.addEventListener("status", (event) => {
    const now = JSON.parse(event.data);
    tell(now);
    if (now.status === "completed") finish(now);
    if (now.status === "completed" || now.status === "failed") { events.close(); changed.call(); }
  });
  events.onerror = () => {
    part(".status").textContent = "Connection lost; trying again ...";
    if (events.readyState === EventSource.CLOSED && events === source) setTimeout(() => shown && shown.id === video.id && open(video.id), 2000);
  };
}

// Show a video that may be gone by now, or whose server may be.
export async function open(id) {
  try {
    watch(await ask("GET", `v1/videos/${id}`));
  } catch (error) {
    if (!shown || !error.message.startsWith("The server cannot")) return clear();
    setTimeout(() => shown && shown.id === id && open(id), 2000);
  }
}

export function clear() {
  if (source) source.close();
  clearInterval(turning);
  tab.drop("watching");
  shown = null;
  stage.dataset.state = "empty";
  slots(facts.frames);
  for (const name of [".status", ".words", ".problem"]) part(name).replaceChildren();
  hideAll();
  part(".actions").hidden = true;
}

function hideAll() {
  all("canvas, video, img", part(".screen")).forEach((element) => { element.hidden = true; });
  part("video").removeAttribute("src");
  delete stage.dataset.frames;
}

// One place in the strip for the first frame, and one for every four that follow.
function slots(count) {
  const places = 1 + Math.ceil((count - 1) / facts.temporal);
  part(".strip").replaceChildren(...Array.from({ length: Math.min(places, 33) }, () => make("li")));
}

function addFrames(news) {
  news.frames.forEach((data, offset) => {
    const picture = new Image();
    picture.src = data;
    frames[news.first_frame + offset] = picture;
  });
  const slot = all("li", part(".strip"))[news.index];
  if (slot) slot.replaceChildren(frames[news.first_frame + news.frames.length - 1].cloneNode());
  if (news.first_frame === 0) turn();
}

// Show the frames so far again and again at the video's own pace; with reduced motion the newest one stands still.
function turn() {
  let at = 0;
  clearInterval(turning);
  const next = () => {
    const ready = frames.filter((picture) => picture && picture.complete && picture.naturalWidth);
    if (!ready.length) return;
    draw(calm() ? ready[ready.length - 1] : ready[at++ % ready.length]);
    stage.dataset.frames = ready.length;
  };
  frames[0].decode().then(next, () => {});
  turning = setInterval(next, 1000 / facts.fps);
}

export function draw(picture) {
  const canvas = part("canvas"), { naturalWidth, naturalHeight } = picture;
  if (canvas.width !== naturalWidth || canvas.height !== naturalHeight) Object.assign(canvas, { width: naturalWidth, height: naturalHeight });
  canvas.getContext("2d").drawImage(picture, 0, 0);
  canvas.hidden = false;
}

function tell(video) {
  shown = video;
  const state = { queued: "waiting", in_progress: "making", completed: "done", failed: "failed" }[video.status];
  stage.dataset.state = state;
  if (state === "making" && !calm()) stage.dataset.beat = beat++ % 3;
  else delete stage.dataset.beat;
  part(".meter").setAttribute("aria-valuenow", video.progress);
  part(".meter i").style.width = `${video.progress}%`;
  const words = {
    waiting: video.queue_position ? `Waiting: ${video.queue_position} before you` : "Starting",
    making: frames.length ? `${frames.length} of ${video.frames} frames` : "Thinking of the first frame",
    done: video.seconds_taken ? `Made in ${video.seconds_taken} s` : "Done",
    failed: "",
  }[state];
  if (part(".status").textContent !== words) part(".status").textContent = words;
  part(".status").dataset.left = state === "making" ? left(video.progress) : ""; // shown by the style sheet, so never read out
  part(".problem").textContent = !video.error ? "" : video.error.code === "cancelled" ? "Cancelled." : sentence(video.error.message);
  describe(video.prompt, [`${video.size}, ${video.steps} steps, guidance ${video.guidance}, temperature ${video.temperature}`, video.note, `seed ${video.seed}`]);
  const moves = video.frames > 1, done = state === "done", over = done || state === "failed";
  const visible = { cancel: !over, mp4: done && moves, gif: done && moves, png: done, loop: done && moves, continue: done, again: over, copy: done && !video.given_frames && !video.keyframes.length, delete: over };
  part(".actions").hidden = false;
  for (const element of all("[data-do]", stage)) {
    const what = element.dataset.do;
    element.hidden = !visible[what];
    if (element.tagName === "A") element.href = address(video, `?variant=large&format=${what}&download=true`);
  }
}

function left(progress) {
  since ??= { progress, time: performance.now() };
  const seconds = (performance.now() - since.time) / 1000, made = progress - since.progress;
  return made > 0 && progress < 100 ? `, about ${Math.ceil(seconds * (100 - progress) / made)} s left` : "";
}

export function describe(title, known) {
  part(".words").replaceChildren(make("b", { textContent: title }), make("small", { textContent: known.filter(Boolean).join("  \u00b7  ") }));
}

function finish(video) {
  const still = video.frames === 1;
  const element = still ? part(".screen img") : part("video");
  element.setAttribute(still ? "alt" : "aria-label", video.prompt);
  if (!still && calm()) element.autoplay = false;
  element[still ? "onload" : "onloadeddata"] = () => {
    clearInterval(turning);
    element.hidden = false;
    part("canvas").hidden = true;
  };
  element.src = address(video);
  fillStrip(video);
}

// A video opened from the gallery has no pictures of its own yet: take them from the file.
function fillStrip(video) {
  const places = all("li", part(".strip"));
  if (video.frames === 1 || places.every((place) => place.firstChild)) return;
  const reader = make("video", { muted: true });
  let at = 0;
  reader.onseeked = () => {
    if (!shown || shown.id !== video.id || at >= places.length) return;
    const canvas = make("canvas", { width: reader.videoWidth, height: reader.videoHeight });
    canvas.getContext("2d").drawImage(reader, 0, 0);
    places[at].replaceChildren(canvas);
    at += 1;
    if (at < places.length) reader.currentTime = (at * facts.temporal + 0.5) / video.fps;
  };
  reader.onloadeddata = () => { reader.currentTime = 0.5 / video.fps; };
  reader.src = address(video);
}
