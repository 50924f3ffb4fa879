// The page's own script: sends requests to the HTTP API, follows their events, shows frames as they come. No other machine is asked.
// Whatever a person or the server says is put on the page as text, never as HTML.
"use strict";
const lumos = (() => {
  const find = (selector, within = document) => within.querySelector(selector);
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const stage = () => find("#lumos-stage");
  const part = (name) => find(name, stage());
  const given = { image: null, video: null }; // kind -> {id, frames}
  let source = null; // the open event stream
  let shown = null; // the document of the video on the stage
  let frames = []; // its pictures so far
  let turning = 0; // timer of the loop over them
  let beat = 0; // news of this video so far

  const keep = {
    get: (name) => { try { return localStorage.getItem("lumos " + name); } catch { return null; } },
    set: (name, value) => { try { localStorage.setItem("lumos " + name, value); } catch { /* private windows */ } },
    drop: (name) => { try { localStorage.removeItem("lumos " + name); } catch { /* private windows */ } },
  };
  const client = keep.get("client") || [...crypto.getRandomValues(new Uint8Array(16))].map((b) => b.toString(16).padStart(2, "0")).join("");
  keep.set("client", client);

  async function ask(method, path, body) {
    const headers = { "X-Client-Id": client };
    if (body && !(body instanceof FormData)) { headers["Content-Type"] = "application/json"; body = JSON.stringify(body); }
    let answer;
    try {
      answer = await fetch(path, { method, headers, body });
    } catch {
      throw new Error("The server cannot be reached. Is it still running?");
    }
    const values = await answer.json().catch(() => ({}));
    if (answer.status === 401) location.assign("login");
    if (!answer.ok) throw new Error(sentence(values.error ? values.error.message : `The server answered with ${answer.status}.`));
    return values;
  }

  const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");
  const address = (video, query = "") => `v1/videos/${video.id}/content${query}`;

  async function create(prompt, length, vary, seed, steps, guidance, temperature) {
    const mode = api.mode;
    const asked = { prompt: prompt || "", steps, guidance, temperature, frames: length };
    if (!vary) asked.seed = seed;
    if (mode !== "text") {
      if (!given[mode]) return problem(mode === "image" ? "Choose a picture first." : "Choose a video to continue first.");
      asked.input_reference = { file_id: given[mode].id };
      if (mode === "video") asked.frames = given[mode].frames + Math.max(4, length - 1);
    }
    if (!asked.prompt.trim()) { problem("Say what should be seen first."); find("#lumos-prompt textarea").focus(); return; }
    const button = find("#lumos-create");
    button.disabled = true;
    try {
      watch(await ask("POST", "v1/videos", asked));
      if (innerWidth < 900) stage().scrollIntoView({ behavior: calm() ? "auto" : "smooth", block: "start" });
    } catch (error) {
      problem(error.message);
    } finally {
      button.disabled = false;
    }
  }

  const calm = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

  function problem(text) {
    part(".problem").textContent = text;
    if (text && stage().getBoundingClientRect().top > innerHeight) stage().scrollIntoView({ block: "center" });
  }

  function watch(video) {
    if (source) source.close();
    clearInterval(turning);
    frames = [];
    keep.set("watching", video.id);
    problem("");
    all("canvas, video, img", part(".screen")).forEach((element) => { element.hidden = true; });
    part("video").removeAttribute("src");
    slots(video.frames);
    delete stage().dataset.frames;
    tell(video);
    if (video.status === "completed") return finish(video);
    if (video.status === "failed") return gallery();
    source = new EventSource(`v1/videos/${video.id}/events`);
    source.addEventListener("frames", (event) => addFrames(JSON.parse(event.data)));
    source.addEventListener("status", (event) => {
      const now = JSON.parse(event.data);
      tell(now);
      if (now.status === "completed") finish(now);
      if (now.status === "completed" || now.status === "failed") { source.close(); gallery(); }
    });
    source.onerror = () => {
      if (source.readyState === EventSource.CLOSED) reopen(video.id);
    };
    gallery();
  }

  // One place in the strip for the first frame, and one for every four that follow.
  function slots(count) {
    const places = 1 + Math.ceil((count - 1) / 4);
    part(".strip").replaceChildren(...Array.from({ length: places }, () => document.createElement("li")));
  }

  function addFrames(news) {
    news.frames.forEach((data, offset) => {
      const picture = new Image();
      picture.src = data;
      frames[news.first_frame + offset] = picture;
    });
    const slot = all("li", part(".strip"))[news.index];
    if (slot) {
      const picture = new Image();
      picture.src = news.frames[news.frames.length - 1];
      picture.alt = "";
      slot.replaceChildren(picture);
    }
    if (news.first_frame === 0) turn();
  }

  // Show the frames so far again and again at the video's own pace; with reduced motion the newest one stands still.
  function turn() {
    const canvas = part("canvas");
    let at = 0;
    clearInterval(turning);
    const draw = () => {
      const ready = frames.filter((picture) => picture && picture.complete && picture.naturalWidth);
      if (!ready.length) return;
      const picture = calm() ? ready[ready.length - 1] : ready[at++ % ready.length];
      if (canvas.width !== picture.naturalWidth || canvas.height !== picture.naturalHeight) {
        canvas.width = picture.naturalWidth;
        canvas.height = picture.naturalHeight;
      }
      canvas.getContext("2d").drawImage(picture, 0, 0);
      canvas.hidden = false;
      stage().dataset.frames = ready.length;
    };
    frames[0].decode().then(draw, () => {});
    turning = setInterval(draw, 1000 / LUMOS.fps);
  }

  function tell(video) {
    shown = video;
    const state = { queued: "waiting", in_progress: "making", completed: "done", failed: "failed" }[video.status];
    stage().dataset.state = state;
    if (state === "making" && !calm()) stage().dataset.beat = beat++ % 3;
    else delete stage().dataset.beat;
    const meter = part(".meter");
    meter.setAttribute("aria-valuenow", video.progress);
    find("i", meter).style.width = `${video.progress}%`;
    const before = video.queue_position;
    const words = {
      waiting: before ? `Waiting: ${before} before you` : "Starting",
      making: frames.length ? `${frames.length} of ${video.frames} frames` : "Thinking of the first frame",
      done: video.seconds_taken ? `Made in ${video.seconds_taken} s` : "Done",
      failed: "",
    }[state];
    if (part(".status").textContent !== words) part(".status").textContent = words;
    if (video.error) problem(video.error.code === "cancelled" ? "Cancelled." : sentence(video.error.message));
    part(".words").textContent = `${video.prompt}  \u00b7  seed ${video.seed}` + (video.note ? `  \u00b7  ${video.note}` : "");
    const is_still = video.frames === 1;
    const finished = state === "done";
    const visible = {
      cancel: state === "waiting" || state === "making", mp4: finished && !is_still, gif: finished && !is_still, png: finished,
      loop: finished && !is_still, continue: finished, again: finished || state === "failed", delete: finished || state === "failed",
    };
    for (const element of all("[data-do]", part(".actions"))) {
      const what = element.dataset.do;
      element.hidden = !visible[what];
      if (element.tagName === "A") element.href = address(video, `?format=${what}&download=true`);
    }
  }

  function finish(video) {
    const still = video.frames === 1;
    const element = still ? part(".screen img") : part("video");
    const show = () => {
      clearInterval(turning);
      element.hidden = false;
      part("canvas").hidden = true;
    };
    element.setAttribute(still ? "alt" : "aria-label", video.prompt);
    if (still) {
      element.onload = show;
    } else {
      element.onloadeddata = show;
      if (calm()) element.autoplay = false;
    }
    element.src = address(video);
    fillStrip(video);
  }

  // A video opened from the gallery has no pictures of its own yet: take them from the file.
  function fillStrip(video) {
    const slots = all("li", part(".strip"));
    if (video.frames === 1 || slots.every((slot) => slot.firstChild)) return;
    const reader = document.createElement("video");
    reader.muted = true;
    reader.src = address(video);
    let at = 0;
    reader.onseeked = () => {
      if (!shown || shown.id !== video.id || at >= slots.length) return;
      const canvas = document.createElement("canvas");
      canvas.width = reader.videoWidth;
      canvas.height = reader.videoHeight;
      canvas.getContext("2d").drawImage(reader, 0, 0);
      slots[at].replaceChildren(canvas);
      at += 1;
      if (at < slots.length) reader.currentTime = (at * 4 + 0.5) / video.fps;
    };
    reader.onloadeddata = () => { reader.currentTime = 0.5 / video.fps; };
  }

  async function reopen(id) {
    try {
      watch(await ask("GET", `v1/videos/${id}`));
    } catch {
      keep.drop("watching");
      clear();
    }
  }

  function clear() {
    if (source) source.close();
    clearInterval(turning);
    keep.drop("watching");
    shown = null;
    stage().dataset.state = "empty";
    slots(LUMOS.frames);
    for (const name of [".status", ".words", ".problem"]) part(name).textContent = "";
    all("canvas, video, img", part(".screen")).forEach((element) => { element.hidden = true; });
    part("video").removeAttribute("src");
    all("[data-do]", part(".actions")).forEach((element) => { element.hidden = true; });
  }

  async function gallery() {
    let list;
    try {
      list = (await ask("GET", "v1/videos?limit=60")).data;
    } catch {
      return;
    }
    const place = find(".lumos-gallery");
    const videos = list.filter((video) => video.status !== "failed");
    find(".none", place).hidden = videos.length > 0;
    find("ul", place).replaceChildren(...videos.map(card));
  }

  function card(video) {
    const item = document.createElement("li");
    const button = document.createElement("button");
    button.type = "button";
    const words = document.createElement("span");
    words.textContent = video.prompt;
    const done = video.status === "completed";
    if (done) {
      const picture = new Image();
      picture.loading = "lazy";
      picture.alt = "";
      const still = address(video, "?variant=thumbnail");
      picture.src = still;
      const play = (moving) => { picture.src = moving && video.frames > 1 && !calm() ? address(video, "?format=gif") : still; };
      button.addEventListener("pointerenter", () => play(true));
      button.addEventListener("focus", () => play(true));
      button.addEventListener("pointerleave", () => play(false));
      button.addEventListener("blur", () => play(false));
      button.append(picture);
    } else {
      const wait = document.createElement("div");
      wait.className = "wait";
      button.append(wait);
    }
    button.setAttribute("aria-label", `${done ? "Show" : "Being made"}: ${video.prompt}`);
    button.addEventListener("click", () => { watch(video); stage().scrollIntoView({ behavior: calm() ? "auto" : "smooth", block: "center" }); });
    button.append(words);
    item.append(button);
    return item;
  }

  async function take(zone, file) {
    const kind = zone.dataset.kind;
    const say = find(".problem", zone);
    forget(zone);
    if (file.size > LUMOS.bytes) {
      say.textContent = `The file has ${(file.size / 2 ** 20).toFixed(1)} MB; at most ${LUMOS.bytes / 2 ** 20} are allowed.`;
      return;
    }
    zone.dataset.state = "busy";
    try {
      const form = new FormData();
      form.append("file", file);
      const upload = await ask("POST", "v1/uploads", form);
      use(kind, upload, upload.preview, `${upload.kind === "image" ? "Picture" : `${upload.frames} frames`} ready` + (upload.note ? `: ${upload.note}` : ""));
    } catch (error) {
      say.textContent = error.message;
    } finally {
      delete zone.dataset.state;
    }
  }

  function use(kind, reference, picture, words) {
    given[kind] = reference;
    const zone = find(`.lumos-drop[data-kind=${kind}]`);
    const image = find("img", zone);
    image.src = picture;
    image.hidden = false;
    find("b", zone).dataset.usual ||= find("b", zone).textContent;
    find("b", zone).textContent = words;
    find("[data-do=forget]", zone).hidden = false;
    find(".problem", zone).textContent = "";
    zone.classList.add("full");
  }

  function forget(zone) {
    given[zone.dataset.kind] = null;
    zone.classList.remove("full");
    find("img", zone).hidden = true;
    find("[data-do=forget]", zone).hidden = true;
    find(".problem", zone).textContent = "";
    find("input", zone).value = "";
    const title = find("b", zone);
    if (title.dataset.usual) title.textContent = title.dataset.usual;
  }

  const actions = {
    async cancel() { await ask("POST", `v1/videos/${shown.id}/cancel`); },
    async delete() { await ask("DELETE", `v1/videos/${shown.id}`); clear(); gallery(); find("#lumos-prompt textarea").focus(); },
    loop() {
      const video = part("video");
      video.loop = !video.loop;
      part("[data-do=loop]").setAttribute("aria-pressed", video.loop);
      if (video.loop) video.play();
    },
    again() {
      api.filling = [shown.prompt, false, shown.seed, shown.steps, shown.guidance, shown.temperature];
      find("#lumos-fill").click();
      const more = find("#lumos-more > button");
      if (more && !more.classList.contains("open")) more.click();
    },
    continue() {
      const video = shown;
      const still = video.frames === 1;
      const kind = still ? "image" : "video";
      all("#lumos-tabs [role=tab]").find((tab) => tab.textContent.trim() === (still ? "Picture" : "Continue")).click();
      const wait = setInterval(() => { // the tab draws itself when it is first opened
        if (!find(`.lumos-drop[data-kind=${kind}]`)) return;
        clearInterval(wait);
        use(kind, video, address(video, still ? "" : "?format=gif"), still ? "Starts from this picture" : `Goes on after these ${video.frames} frames`);
        api.filling = [video.prompt, true, video.seed, video.steps, video.guidance, video.temperature];
        find("#lumos-fill").click();
        find("#lumos-prompt textarea").focus();
      }, 50);
    },
  };

  document.addEventListener("click", (event) => {
    const element = event.target.closest("[data-do]");
    if (!element || element.tagName === "A") return;
    if (element.dataset.do === "forget") return forget(element.closest(".lumos-drop"));
    if (shown) Promise.resolve(actions[element.dataset.do]()).catch((error) => problem(error.message));
  });
  document.addEventListener("change", (event) => {
    const zone = event.target.closest(".lumos-drop");
    if (zone && event.target.files && event.target.files[0]) take(zone, event.target.files[0]);
  });
  for (const name of ["dragover", "dragleave", "drop"]) {
    document.addEventListener(name, (event) => {
      const zone = event.target.closest && event.target.closest(".lumos-drop");
      event.preventDefault(); // a file dropped elsewhere must not replace the page
      all(".lumos-drop").forEach((other) => other.classList.toggle("over", name === "dragover" && other === zone));
      if (zone && name === "drop" && event.dataTransfer.files[0]) take(zone, event.dataTransfer.files[0]);
    });
  }
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing && event.target.closest("#lumos-prompt")) {
      event.preventDefault();
      event.stopPropagation();
      find("#lumos-create").click();
    }
  }, true);

  // The library's loading sign goes on to count the time at every repaint when it is long gone: that takes cores from the model.
  const repaint = window.requestAnimationFrame.bind(window);
  const counting = /\(performance\.now\(\) ?- ?\w+\(\w+\)\) ?\/ ?1e3/;
  window.requestAnimationFrame = (draw) => (stage() && counting.test(draw) ? 0 : repaint(draw));

  const begin = new MutationObserver(() => {
    if (!stage() || !find(".lumos-gallery ul")) return;
    begin.disconnect();
    document.documentElement.lang = "en";
    const before = keep.get("watching");
    clear();
    gallery();
    if (before) reopen(before);
  });
  begin.observe(document, { childList: true, subtree: true });

  const api = { create, mode: "text", filling: [] };
  return api;
})();
window.lumos = lumos;
