// The page: the form that asks for a video, what can be done with one, and the gallery. stage.js shows the one that is watched.
import { find, all, make, ask, address, calm, keep, tab } from "./client.js";
import { watch, open, clear, shown, facts, changed } from "./stage.js";
import { say, isLive } from "./live.js";

const EXAMPLES = ["a horse gallops in the snow", "a snowman wearing a blue scarf", "a red circle moves up", "a rocket flies up", "a clownfish swims to the left under water"];
const KNOWN = { box: "Knows animals and robots in seven landscapes and under water, over a thousand emoji, and coloured shapes that move." };
const pick = (list) => list[Math.floor(Math.random() * list.length)];
const given = { image: null, last: null, video: null }; // kind -> {id, frames}
const prompt = find("#prompt"), stage = find("#stage");
const field = (name) => find("#" + name);
const mode = () => find("[name=start]:checked").value;

// What the weights in the package have seen: animals in places, emoji, and shapes with a motion.
function surprise() {
  const shape = () => `${pick(["red", "green", "blue", "yellow", "purple", "orange", "pink"])} ${pick(["circle", "square", "triangle", "star", "heart", "ring", "diamond"])}`;
  const animal = ["fox", "horse", "wolf", "deer", "cow", "donkey", "husky", "knight", "mage", "triceratops", "velociraptor", "green mech"];
  const fish = ["shark", "dolphin", "whale", "clownfish", "swordfish", "pufferfish"];
  const emoji = ["cat with heart eyes", "rocket", "octopus", "snowman", "ghost", "hatching chick", "slice of pizza", "robot", "unicorn", "balloon"];
  const where = ["on grass", "in the snow", "on sand", "in a forest", "in an autumn forest", "on grass at dusk"];
  return pick([() => `a ${pick(animal)} ${pick(["walks", "walks to the left", "runs to the right", "jumps"])} ${pick(where)}`,
    () => `a ${pick(fish)} swims ${pick(["to the left", "to the right"])} under water`,
    () => `a ${pick(emoji)} ${pick(["", "moves to the left", "bounces", "grows"])}`.trim(),
    () => `a ${shape()} ${pick(["moves up", "bounces", "spins", "moves in a circle"])}`])();
}

function problem(text) {
  field("problem").textContent = text;
  if (text) field("problem").scrollIntoView({ block: "nearest" });
}

async function create() {
  if (field("create").disabled) return; // Enter, twice
  const words = prompt.value.trim(), start = mode(), number = (name) => Number(field(name).value);
  const length = Number(find("[name=length]:checked").value);
  const asked = { prompt: prompt.value, frames: length, steps: number("steps"), guidance: number("guidance"), temperature: number("temperature") };
  problem("");
  if (start === "video" && !given.video) return problem("Choose a video to continue first.");
  if (start === "image" && !given.image && !given.last) return problem("Choose a picture first.");
  const first = start === "video" ? given.video : start !== "text" && given.image;
  if (first) asked.input_reference = { file_id: first.id };
  if (start === "image" && given.last) asked.last_image = { file_id: given.last.id };
  if (start === "video") asked.frames = given.video.frames + Math.max(facts.temporal, length - 1);
  if (!words) { problem("Describe the video first."); return prompt.focus(); }
  field("create").disabled = true;
  if (start === "live" && !field("vary").checked) asked.seed = number("seed");
  try {
    if (start === "live") {
      delete asked.frames;
      await say(asked);
      prompt.value = "";
      name();
      return prompt.focus();
    }
    for (let n = 0; n < number("variations"); n++) {
      if (!field("vary").checked) asked.seed = number("seed") + n;
      const video = await ask("POST", "v1/videos", asked);
      if (n === 0) watch(video);
    }
    if (innerWidth < 900) stage.scrollIntoView({ behavior: calm() ? "auto" : "smooth" });
  } catch (error) {
    problem(error.message);
  } finally {
    field("create").disabled = false;
    gallery();
  }
}

// What the field and the button are called: a session that runs is told what comes next.
function name() {
  const live = mode() === "live", told = live && isLive();
  field("form").toggleAttribute("data-told", told);
  find("label[for=prompt]").textContent = told ? "What happens next?" : live ? "Describe how it begins" : "Describe the video";
  field("create").textContent = told ? "Say" : live ? "Play" : "Create";
  prompt.placeholder = told ? "Another sentence, whenever you like" : EXAMPLES[0];
}

function fill(video, vary) {
  prompt.value = video.prompt;
  field("vary").checked = vary;
  for (const name of ["seed", "steps", "guidance", "temperature"]) { field(name).value = video[name]; }
  showValues();
}

const showValues = () => all("#more output").forEach((output) => { output.textContent = find("input", output.parentElement).value; });

const actions = {
  cancel: () => ask("POST", `v1/videos/${shown.id}/cancel`),
  delete: () => remove(shown),
  loop() {
    const video = find("video", stage);
    video.loop = !video.loop;
    find("[data-do=loop]").setAttribute("aria-pressed", video.loop);
    if (video.loop) video.play();
  },
  again() { fill(shown, false); find("#more").open = true; },
  async copy(button) {
    const { prompt, frames, seed, steps, guidance, temperature, size } = shown;
    const [width, height] = size.split("x");
    const quoted = `'${prompt.replaceAll("'", "'\\''")}'`, out = `video.${frames > 1 ? "mp4" : "png"}`;
    const words = `lumos generate ${quoted} --out ${out} --weights ${facts.id} --frames ${frames} --width ${width} --height ${height} --seed ${seed} --steps ${steps} --guidance ${guidance} --temperature ${temperature}`;
    await navigator.clipboard.writeText(words);
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy command"; }, 1500);
  },
  continue() {
    const still = shown.frames === 1, kind = still ? "image" : "video";
    find(`[name=start][value=${kind}]`).click();
    use(kind, shown, address(shown, still ? "" : "?format=gif"), still ? "Starts from this picture" : `Goes on after these ${shown.frames} frames; the length is what is added`);
    fill(shown, true);
    prompt.focus();
  },
};

// A deleted video is gone only when the toast is: until then it can be had back.
let leaving = null;
function remove(video) {
  if (leaving) leaving.go();
  const toast = field("toast"), timer = setTimeout(() => leaving && leaving.go(), 6000);
  const end = () => { clearTimeout(timer); leaving = null; toast.hidden = true; };
  leaving = { id: video.id, go() { end(); ask("DELETE", `v1/videos/${video.id}`, null, { keepalive: true }).catch((error) => problem(error.message)).then(gallery); } };
  if (shown && shown.id === video.id) clear();
  find("span", toast).textContent = ["queued", "in_progress"].includes(video.status) ? "Cancelled and deleted." : "Deleted.";
  find("button", toast).onclick = () => { end(); gallery(); };
  toast.hidden = false;
  gallery();
}

let polling = 0;
async function gallery() {
  clearTimeout(polling);
  let list;
  try {
    list = (await ask("GET", "v1/videos?limit=60")).data;
  } catch {
    return;
  }
  const videos = list.filter((video) => video.status !== "failed" && !(leaving && leaving.id === video.id));
  find("#gallery .none").hidden = videos.length > 0;
  const cards = all("#gallery li"), state = (video) => `${video.id} ${video.status} ${video.progress}`;
  find("#gallery ul").replaceChildren(...videos.map((video) => cards.find((item) => item.dataset.state === state(video)) || card(video, state(video))));
  if (videos.some((video) => ["queued", "in_progress"].includes(video.status) && video.id !== shown?.id)) polling = setTimeout(gallery, 3000);
}

function card(video, state) {
  const done = video.status === "completed", still = address(video, "?variant=thumbnail"), item = make("li");
  const button = make("button", { type: "button", className: "show", ariaLabel: `${done ? "Show" : "Being made"}: ${video.prompt}` });
  const remover = make("button", { type: "button", className: "remove", textContent: "\u00d7", ariaLabel: `${done ? "Delete" : "Cancel"}: ${video.prompt}` });
  const picture = done
    ? make("img", { loading: "lazy", alt: "", src: still })
    : make("div", { className: "wait", textContent: video.status === "queued" ? "Waiting" : `${video.progress} %` });
  const play = (moving) => { if (done) picture.src = moving && video.frames > 1 && !calm() ? address(video, "?format=gif") : still; };
  for (const name of ["pointerenter", "focus"]) button.addEventListener(name, () => play(true));
  for (const name of ["pointerleave", "blur"]) button.addEventListener(name, () => play(false));
  button.onclick = () => { watch(video); stage.scrollIntoView({ behavior: calm() ? "auto" : "smooth", block: "center" }); };
  remover.onclick = () => remove(video);
  item.dataset.state = state;
  button.append(picture, make("span", { textContent: video.prompt }));
  item.append(button, remover);
  return item;
}

async function take(zone, file) {
  const say = find(".problem", zone);
  forget(zone);
  if (file.size > facts.upload_bytes) {
    say.textContent = `The file has ${(file.size / 2 ** 20).toFixed(1)} MB; at most ${facts.upload_bytes / 2 ** 20} are allowed.`;
    return;
  }
  zone.dataset.state = "busy";
  try {
    const form = new FormData();
    form.append("file", file);
    const upload = await ask("POST", "v1/uploads", form);
    if (upload.kind === "video" && zone.dataset.kind !== "video") throw new Error("This moves: choose a picture, or the tab Continue.");
    use(zone.dataset.kind, upload, upload.preview, `${upload.kind === "image" ? "Picture" : `${upload.frames} frames`} ready` + (upload.note ? `: ${upload.note}` : ""));
  } catch (error) {
    say.textContent = error.message;
  } finally {
    delete zone.dataset.state;
  }
}

const told = (zone) => find(zone.dataset.kind === "video" ? "b" : "small", zone); // where a drop zone says what it holds

function use(kind, reference, picture, words) {
  const zone = find(`.drop[data-kind=${kind}]`), title = told(zone);
  given[kind] = reference;
  Object.assign(find("img", zone), { src: picture, hidden: false });
  title.dataset.usual ||= title.textContent;
  title.textContent = words;
  find("button", zone).hidden = false;
  find(".problem", zone).textContent = "";
  zone.classList.add("full");
}

function forget(zone) {
  const title = told(zone);
  given[zone.dataset.kind] = null;
  zone.classList.remove("full");
  find("img", zone).hidden = find("button", zone).hidden = true;
  find(".problem", zone).textContent = find("input", zone).value = "";
  title.textContent = title.dataset.usual || title.textContent;
}

function listen() {
  find("#form").addEventListener("submit", (event) => { event.preventDefault(); create(); });
  prompt.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); find("#form").requestSubmit(); }
  });
  find("#more").addEventListener("input", showValues);
  find("#start").addEventListener("change", () => { problem(""); name(); });
  stage.addEventListener("left", name);
  stage.addEventListener("click", (event) => {
    const element = event.target.closest("button[data-do]");
    if (element && shown) Promise.resolve(actions[element.dataset.do](element)).catch((error) => problem(error.message));
  });
  for (const zone of all(".drop")) {
    find("input", zone).addEventListener("change", (event) => event.target.files[0] && take(zone, event.target.files[0]));
    find("button", zone).addEventListener("click", () => forget(zone));
  }
  for (const name of ["dragover", "dragleave", "drop"]) {
    document.addEventListener(name, (event) => {
      const zone = event.target.closest && event.target.closest(".drop");
      event.preventDefault(); // a file dropped elsewhere must not replace the page
      all(".drop").forEach((other) => other.classList.toggle("over", name === "dragover" && other === zone));
      if (zone && name === "drop" && event.dataTransfer.files[0]) take(zone, event.dataTransfer.files[0]);
    });
  }
  addEventListener("pagehide", () => leaving && leaving.go());
  const dark = () => (keep.get("theme") || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const theme = () => { if (keep.get("theme")) document.documentElement.dataset.theme = keep.get("theme"); field("theme").textContent = dark() ? "Light" : "Dark"; };
  field("theme").addEventListener("click", () => { keep.set("theme", dark() ? "light" : "dark"); theme(); });
  theme();
}

function build() {
  const chips = [...EXAMPLES, "Surprise me"].map((text) => {
    const last = text === "Surprise me";
    return make("button", { type: "button", textContent: text, className: last ? "surprise" : "", onclick: () => { prompt.value = last ? surprise() : text; prompt.focus(); } });
  });
  prompt.placeholder = EXAMPLES[0];
  field("known").textContent = KNOWN[facts.id] || "";
  find("#examples").append(...chips);
  // a still picture, and the trained length halved, as it is, doubled and so on
  const step = facts.temporal, trained = [0.5, 1, 2, 4].map((factor) => 1 + step * Math.max(1, Math.round((facts.frames - 1) * factor / step)));
  for (const frames of [1, ...new Set(trained)].filter((frames) => frames <= facts.max_frames)) {
    const label = make("label"), radio = make("input", { type: "radio", name: "length", value: frames, checked: frames === facts.frames });
    label.append(radio, frames === 1 ? "Still" : `${(frames / facts.fps).toFixed(frames < facts.fps ? 1 : 0)} s`);
    find("#length").append(label);
  }
  field("steps").max = Math.min(facts.max_steps, (facts.height / facts.spatial) * (facts.width / facts.spatial));
  for (const name of ["steps", "guidance", "temperature"]) field(name).value = facts[name];
  field("logout").hidden = !facts.key_needed;
  showValues();
}

async function begin() {
  const model = await ask("GET", "v1/models").then((answer) => answer.data[0], (error) => problem(error.message));
  if (!model || !model.fps) { // the server answers before its model is there
    if (model) problem("The model is being loaded ...");
    return setTimeout(begin, 1000);
  }
  problem("");
  Object.assign(facts, model);
  build();
  changed.call = gallery;
  const before = tab.get("watching");
  clear();
  gallery();
  if (before) open(before);
  document.body.dataset.ready = "";
}

listen();
begin();
