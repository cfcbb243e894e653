"use strict";

const main = document.querySelector("main");
const page = document.querySelector("#page");
const offline = document.querySelector("#offline");
const browser = () => ({ width: innerWidth, height: innerHeight, pixel_ratio: devicePixelRatio });
const address = (image) => `images/${image}.png`;
const escaped = (text) => Object.assign(document.createElement("i"), { textContent: text }).innerHTML;

/** Sends until there is a reply; an error if the reply is a refusal. */
async function request(path, message) {
  const options = message && {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(message),
  };
  for (let wait = 500; ; wait = Math.min(2 * wait, 8000)) {
    try {
      const reply = await fetch(path, { ...options, cache: "no-store", signal: AbortSignal.timeout(20000) });
      if (reply.status < 500) {
        const content = await reply.json();
        offline.hidden = true;
        return reply.ok ? content : Promise.reject(Object.assign(new Error(content.error), { status: reply.status }));
      }
    } catch (error) {
      console.warn(`${path}: ${error.message}`);
    }
    offline.hidden = false;
    await new Promise((resolve) => setTimeout(resolve, wait));
  }
}

/** Keyboard and screen reader go on from the heading of a new page. */
function begin(element) {
  const heading = element.querySelector("h1");
  heading.tabIndex = -1;
  heading.focus();
}

/** Shows a page; the index of the button that is pressed. */
function ask(html, ...buttons) {
  page.innerHTML = html + buttons.map((text) => `<button class="jspsych-btn">${text}</button>`).join("");
  begin(page);
  return new Promise((resolve) => page.querySelectorAll("button").forEach((button, index) => {
    button.onclick = () => { page.innerHTML = ""; resolve(index); };
  }));
}

/** Keeps each pixel of an image a whole number of the screen's pixels, and says so if the window is too small. */
function fit({ size, scale }) {
  const multiple = Math.max(1, Math.round(devicePixelRatio * scale));
  const [width, height] = size.map((pixels) => pixels * multiple / devicePixelRatio);
  document.body.style.setProperty("--width", `${width}px`);
  document.body.style.setProperty("--height", `${height}px`);
  const needed = [Math.max(800, 2 * width + 80), Math.max(540, height + 350)].map(Math.ceil);
  document.querySelector("#needed").textContent = needed.join(" × ");
  document.querySelector("#actual").textContent = `${innerWidth} × ${innerHeight}`;
  document.body.classList.toggle("too-small", innerWidth < needed[0] || innerHeight < needed[1]);
}

/** Prolific's ids from the address; without them, where that is allowed, an id that stays in this browser after consent. */
function identify(study, consent) {
  const given = new URLSearchParams(location.search);
  const ids = ["PROLIFIC_PID", "STUDY_ID", "SESSION_ID"].filter((name) => given.get(name));
  if (given.get("PROLIFIC_PID")) return Object.fromEntries(ids.map((name) => [name, given.get(name)]));
  if (!study.open) throw new Error("Please open this study from its page on Prolific.");
  const made = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), (n) => n.toString(16).padStart(2, "0")).join("");
  try {
    const id = localStorage.getItem("id") ?? made();
    if (consent) localStorage.setItem("id", id);
    return { BROWSER_ID: id };
  } catch {
    throw new Error("This browser does not let the study store anything, so it could not go on after a break. Please allow "
      + "this page to store data (cookies), or use another browser.");
  }
}

const pair = ([clean, perturbed]) => `<div class="pair">
  <figure><img class="stimulus" src="${address(clean)}" alt="Example, not perturbed"><figcaption>Not perturbed</figcaption></figure>
  <figure><img class="stimulus" src="${address(perturbed)}" alt="The same image, perturbed"><figcaption>Perturbed</figcaption></figure>
  </div>`;

const instructions = ({ strong, weak }, trials) => [
  `<div class="instructions"><h1>Perturbed images</h1><p>The image on the left is as it was taken. On the right is the same image
    after a computer program changed its pixels in order to mislead another program. We call such an image perturbed.
    This one is strongly perturbed.</p></div>${pair(strong)}`,
  `<div class="instructions"><h1>Your task</h1><p>You will be shown ${trials} images, one after the other.
    For each of them, say whether it is perturbed or not.</p>
    <p>Press the key <kbd>←</kbd> for <b>not perturbed</b> and the key <kbd>→</kbd> for <b>perturbed</b>, or click on the
    buttons. There is no time limit for an image. If you are not sure, give your best guess.</p></div>`,
  `<div class="instructions"><h1>A weak perturbation</h1><p>It may be hard to see whether an image is perturbed.
    On the right is an image that is only weakly perturbed.</p></div>${pair(weak)}`,
];

/** Runs the trials that are left; the link at the end. */
async function run(me) {
  let link = null;
  const jsPsych = initJsPsych({ display_element: main, on_trial_start: () => main.removeAttribute("tabindex") });
  const buttons = () => document.querySelectorAll("#jspsych-image-button-response-btngroup button");
  addEventListener("keydown", (event) => {
    const choice = ["ArrowLeft", "ArrowRight"].indexOf(event.key);
    if (choice < 0 || event.repeat || event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    if (!document.body.classList.contains("too-small")) buttons()[choice]?.click();
  });
  const images = me.images.map(address);
  const trials = images.map((stimulus, trial) => ({
    type: jsPsychImageButtonResponse,
    stimulus,
    render_on_canvas: false,
    css_classes: ["trial"],
    choices: ["<kbd>←</kbd> Not perturbed", "Perturbed <kbd>→</kbd>"],
    prompt: `<div class="question"><h1>Is this image perturbed?</h1><label>Image ${trial + 1} of ${images.length}
      <progress max="${images.length}" value="${trial}"></progress></label></div>`,
    on_load: () => {
      document.querySelector("#jspsych-image-button-response-stimulus").alt = "The image to judge";
      jsPsych.getDisplayElement().prepend(document.querySelector(".question"));
      document.querySelector("#announcement").textContent = `Image ${trial + 1} of ${images.length}: is it perturbed?`;
    },
    on_finish: async ({ response, rt }) => { // the next trial waits until the answer is stored
      const answer = { participant: me.participant, trial, image: me.images[trial], perturbed: response === 1, reaction_ms: rt };
      link = (await request("answer", answer)).completion_link;
    },
  }));
  const pages = instructions(me.examples, images.length);
  const first = me.done ? [] : [{
    type: jsPsychInstructions, pages, show_clickable_nav: true,
    allow_keys: false, // an arrow too many would be an answer
    on_load: () => begin(jsPsych.getDisplayElement()),
    on_page_change: (index) => index < pages.length && begin(jsPsych.getDisplayElement()),
  }];
  const preload = {
    type: jsPsychPreload,
    images: [...images.slice(me.done), ...Object.values(me.examples).flat().map(address)],
    message: "<p>The images are loading…</p>",
    error_message: `<h1>The images could not be loaded</h1><p>The study has not begun. Please check your connection.</p>
      <p><a class="jspsych-btn button" href="">Try again</a></p>`,
    max_load_time: 120000,
  };
  try {
    await jsPsych.run([preload, ...first, ...trials.slice(me.done)]);
  } finally {
    document.querySelector(".jspsych-content-wrapper").remove();
    document.querySelector("#announcement").textContent = "";
  }
  return link;
}

async function takePart() {
  const study = await request("settings");
  document.title = study.title;
  document.querySelector("#preview").hidden = !study.preview;
  addEventListener("resize", () => fit(study));
  fit(study);
  const contact = study.contact && `<p class="text">Contact: ${escaped(study.contact)}</p>`;
  const code = ({ withdrawal_code: text }) => text ? `<p>If you want your answers deleted later, give this code to the
    study's contact: <code>${text}</code>. Please note it down; without it nobody can tell which answers are yours.</p>` : "";
  try {
    const start = (consent) => request("start", {
      ids: identify(study, consent), consent, browser: browser(), simulated: false,
    });
    let me = await start(false);
    if (!me.started) {
      const text = study.consent.map((part) => `<p class="text">${escaped(part) || "There is no consent text yet."}</p>`).join("");
      if (await ask(`<h1>${escaped(study.title)}</h1>${text}${contact}`, "I agree and take part", "I do not agree")) {
        await ask("<h1>You have not taken part</h1><p>Nothing was stored. You can close this window; on Prolific, please return your submission.</p>");
      }
      me = await start(true);
    } else if (0 < me.done && me.done < study.trials) {
      await ask(`<h1>Welcome back</h1><p>You have answered ${me.done} of ${study.trials} images. The study goes on where you
        stopped: is each image <b>not perturbed</b> (<kbd>←</kbd>) or <b>perturbed</b> (<kbd>→</kbd>)?</p>${code(me)}`, "Go on");
    }
    const link = me.done < study.trials ? await run(me) : me.completion_link;
    await ask(`<h1>Thank you</h1><p>You have answered all ${study.trials} images. Your answers are stored; the study can be done
      only once.</p>${code(me)}${link ? `<p><a class="jspsych-btn button" href="${escaped(link)}">Complete the study</a></p>` : ""}${contact}`);
  } catch (error) {
    await ask(`<h1>The study cannot go on</h1><p>${escaped(error.message)}</p>${contact}`, "Load this page again");
    location.reload();
  }
}

takePart();
