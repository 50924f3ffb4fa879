// The Live tab: one session, played as it is made. Its sentences are a strip, and a click on one goes back to where it began.
import { find, all, make, ask, calm } from "./client.js";
import { clear, describe, draw, facts } from "./stage.js";

const stage = find("#stage"), part = (name) => find(name, stage);
const AHEAD = 8; // frames that wait to be played before more are asked for
const KEPT = 64; // frames that are remembered
let live = null; // {document, frames (number -> picture), count, at, paused, turn, timer}

export const isLive = () => live !== null;

// The first sentence begins a session, each later one is said to it.
export async function say(asked) {
  if (live) return tell(await act("say", { prompt: asked.prompt }));
  const document = await ask("POST", "v1/sessions", asked);
  clear();
  live = { document, frames: [], count: 0, at: 0, paused: false, turn: 0, timer: setInterval(play, 1000 / facts.fps) };
  stage.dataset.state = "live";
  part(".strip").replaceChildren();
  for (const name of [".actions", ".said"]) part(name).hidden = false;
  all("[data-do]", stage).forEach((element) => { element.hidden = !["pause", "end"].includes(element.dataset.do); });
  tell(document);
  follow(live);
}

const act = (what, body) => ask("POST", `v1/sessions/${live.document.id}/${what}`, body);

// Ask for the frames after those that are there, one latent frame at a time, as long as they are played.
async function follow(session) {
  while (session === live) {
    if (session.paused || session.count - session.at >= AHEAD) {
      await new Promise((resolve) => setTimeout(resolve, 100));
      continue;
    }
    const turn = session.turn;
    try {
      const news = await ask("GET", `v1/sessions/${session.document.id}/frames?after=${session.count}`);
      if (session !== live || turn !== session.turn) continue; // of before a step back
      if (news.first_frame === session.count) news.pictures.forEach((data) => { session.frames[session.count++] = Object.assign(new Image(), { src: data }); });
      tell(news);
      if (news.error) return over(news.error.message);
    } catch (error) {
      if (session === live && turn === session.turn) over(error.message);
      return;
    }
  }
}

function play() {
  const picture = live.frames[live.at];
  if (live.paused || !picture || !picture.complete || !picture.naturalWidth) return;
  if (!calm() || live.at % facts.temporal === 0) draw(picture);
  delete live.frames[live.at++ - KEPT];
  stage.dataset.frames = live.at;
}

// Show what is known of the session: its sentences, the one that holds now, and how long it is.
function tell(document) {
  live.document = document;
  const said = document.sentences.map(({ frame, prompt }) => `${frame} ${prompt}`).join("\n");
  if (part(".said").dataset.text !== said) {
    part(".said").dataset.text = said;
    part(".said").replaceChildren(...document.sentences.map(button));
    part(".said").scrollLeft = part(".said").scrollWidth;
  }
  const state = live.paused ? "Paused" : live.count ? "Playing" : "Thinking of the first frame"; // it is read out at every change
  if (part(".status").textContent !== state) part(".status").textContent = state;
  describe("", [`${(live.count / facts.fps).toFixed(0)} s`, document.size, document.note, `seed ${document.seed}`]);
  part("[data-do=pause]").textContent = live.paused ? "Play" : "Pause";
}

function button({ frame, prompt }, index, all) {
  const item = make("li"), button = make("button", { type: "button", textContent: prompt, ariaLabel: `Go back to: ${prompt}`, disabled: frame === null });
  button.prepend(make("small", { textContent: frame === null ? "next" : `${(frame / facts.fps).toFixed(1)} s` }));
  if (index === all.length - 1) button.setAttribute("aria-current", "true");
  button.onclick = () => back(frame).catch((error) => { part(".problem").textContent = error.message; });
  item.append(button);
  return item;
}

async function back(frame) {
  const document = await act("back", { frame });
  if (!live) return;  // it ended meanwhile
  live.turn++;
  live.frames.length = live.count = document.frames;
  live.at = Math.min(live.at, live.count);
  live.paused = false;
  tell(document);
}

async function pause() {
  const paused = !live.paused, document = paused ? await act("pause") : live.document;
  if (!live) return;
  live.paused = paused;
  tell(document);
}

function over(words) {
  leave();
  stage.dataset.state = "failed";
  part(".problem").textContent = words;
}

// End the session; what was shown last stays until something else is watched.
export function leave() {
  if (!live) return;
  clearInterval(live.timer);
  act("end", null, { keepalive: true }).catch(() => {});
  live = null;
  stage.dataset.state = "done";
  part(".status").textContent = "Ended. What is played live is not kept.";
  for (const name of [".actions", ".said"]) part(name).hidden = true;
  part(".said").dataset.text = part(".words").textContent = "";
  stage.dispatchEvent(new Event("left"));
}

stage.addEventListener("taken", leave);
addEventListener("pagehide", leave);
part("[data-do=pause]").addEventListener("click", () => live && pause().catch((error) => { part(".problem").textContent = error.message; }));
part("[data-do=end]").addEventListener("click", leave);
