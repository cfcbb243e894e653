// Goes through the study in Chromium. node browser.mjs '{"page": …, "chromium": …, "out": …, "study": …, "preview": …}'
// prints as JSON what it saw; test_page.py judges it.
import { createRequire } from "node:module";

const { page: folder, chromium, out, study, preview } = JSON.parse(process.argv[2]);
const require = createRequire(`${folder}/package.json`);
const flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
  "--disable-background-networking", "--disable-component-update", "--disable-sync", "--force-color-profile=srgb"];
const launch = (...more) => require("playwright-core").chromium.launch({ executablePath: chromium, args: [...flags, ...more] });
const browser = await launch();
const seen = { headings: [], violations: [], errors: [], hosts: [], shots: {} };

async function open(url, options = {}, where = browser) {
  const context = await where.newContext({ viewport: { width: 1280, height: 800 }, ...options });
  const page = await context.newPage();
  page.setDefaultTimeout(30000);
  page.on("request", (request) => seen.hosts.push(new URL(request.url()).host));
  if (!options.broken) {
    page.on("console", (message) => message.type() === "error" && seen.errors.push(message.text()));
    page.on("pageerror", (error) => seen.errors.push(String(error)));
  }
  await page.goto(url);
  return page;
}

const button = (page, text) => page.getByRole("button", { name: text, exact: true });
const heading = async (page) => (await page.locator("h1:visible").first().textContent()).trim();
const image = (page) => page.locator("#jspsych-image-button-response-stimulus");
const participant = (name) => `${study}/?PROLIFIC_PID=${name}&STUDY_ID=s1&SESSION_ID=s2`;

async function look(page, name, headings = 1) {
  await page.screenshot({ path: `${out}/${name}.png` });
  await page.evaluate(require("axe-core").source);
  const found = await page.evaluate(() => axe.run({ runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"] }));
  seen.violations.push(...found.violations.map((v) => `${name}: ${v.id}: ${v.nodes.map((n) => n.html).join(" ")}`));
  const landmarks = await page.evaluate(() => ["main", "h1"].map((name) =>
    [...document.querySelectorAll(name)].filter((element) => element.checkVisibility()).length));
  if (String(landmarks) !== `1,${headings}`) seen.violations.push(`${name}: ${landmarks[0]} main, ${landmarks[1]} h1`);
  if (!found.passes.length) seen.violations.push(`${name}: axe looked at nothing`);
}

async function shown(page, number) {
  await page.locator(".question").getByText(`Image ${number} of 50`).waitFor();
}

async function agree(page) {
  await button(page, "I agree and take part").click();
  await page.getByText("strongly perturbed").waitFor();
}

async function toTrials(page) { // by keys alone
  await page.locator("h1:focus").waitFor();
  await page.keyboard.press("Tab");
  await page.keyboard.press("Enter");
  for (const [k, title] of ["Perturbed images", "Your task", "A weak perturbation"].entries()) {
    await page.locator("h1:focus").getByText(title).waitFor();
    for (const key of k ? ["Tab", "Tab", "Enter"] : ["Tab", "Enter"]) await page.keyboard.press(key);
  }
  await shown(page, 1);
}

async function whole() {
  let page = await open(participant("whole"));
  await button(page, "I agree and take part").waitFor();
  seen.consent = await page.locator("#page").innerText();
  await look(page, "1-consent");
  await agree(page);
  for (const [k, name] of ["2-strong", "3-task", "4-weak"].entries()) {
    seen.headings.push(await heading(page));
    await look(page, name);
    await page.keyboard.press("ArrowRight"); // means an answer: no page is passed by it
    await page.locator("#jspsych-instructions-next").click();
  }
  seen.answers = [];
  for (let trial = 0; trial < 50; trial++) {
    await shown(page, trial + 1);
    if (trial === 7) await look(page, "5-trial");
    if (trial === 20) {
      await page.reload();
      await button(page, "Go on").waitFor();
      await look(page, "6-welcome-back");
      await button(page, "Go on").click();
      await shown(page, 21);
    }
    const perturbed = trial % 3 === 0;
    if (trial % 4 < 2) await page.keyboard.press(perturbed ? "ArrowRight" : "ArrowLeft");
    else await page.getByRole("button", { name: perturbed ? "Perturbed →" : "← Not perturbed" }).click();
    seen.answers.push(perturbed);
  }
  await page.getByText("Thank you").waitFor();
  await look(page, "7-thanks");
  seen.link = await page.getByRole("link").getAttribute("href");
  await page.reload();
  await page.getByText("Thank you").waitFor();
}

async function refused() {
  const phone = await open(participant("phone"), { viewport: { width: 390, height: 844 }, deviceScaleFactor: 3, isMobile: true, hasTouch: true });
  seen.phone = await heading(phone);
  await look(phone, "8-phone");
  await phone.setViewportSize({ width: 844, height: 390 });
  await look(phone, "8-phone-on-its-side");
  seen.phoneOnItsSide = await heading(phone);
  const stranger = await open(`${study}/`);
  await stranger.getByText("from its page on Prolific").waitFor();
  await look(stranger, "9-not-from-prolific");
  const no = await open(participant("no"));
  await button(no, "I do not agree").click();
  await no.getByText("You have not taken part").waitFor();
  await look(no, "10-not-agreed");
}

async function broken() {
  const images = await open(participant("images"), { broken: true });
  await images.route("**/images/*", (route) => route.abort());
  await button(images, "I agree and take part").click();
  await images.getByText("The images could not be loaded").waitFor();
  await look(images, "11-images-not-loaded");
  await images.unroute("**/images/*");
  await images.getByRole("link", { name: "Try again" }).click();
  await images.getByText("strongly perturbed").waitFor();

  const lost = await open(participant("lost"), { broken: true });
  await toTrials(lost);
  let replies = 0, down = true;
  await lost.route("**/answer", async (route) => {
    if (down && replies) return route.abort();
    replies++;
    if (!down) return route.continue();
    await route.fetch(); // the answer arrives, its reply is lost
    return route.abort();
  });
  await lost.keyboard.press("ArrowRight");
  await lost.getByText("There is no connection").waitFor();
  await look(lost, "12-no-connection", 0); // between two images: the notice alone
  down = false;
  await shown(lost, 2);
  seen.sent = replies;
  const other = await lost.context().newPage(); // the same participant in another window
  await other.goto(participant("lost"));
  await button(other, "Go on").click();
  await shown(other, 2);
  await other.keyboard.press("ArrowRight");
  await shown(other, 3);
  await lost.keyboard.press("ArrowLeft");
  await lost.getByText("was answered already").waitFor();
  await look(lost, "13-two-windows");
  await button(lost, "Load this page again").click();
  await button(lost, "Go on").click();
  await shown(lost, 3);
}

async function pixels() {
  for (const [k, ratio] of [1, 1.25, 1.5].entries()) { // the sizes are such that the images would not begin at whole pixels
    // As on a screen of that ratio: emulated, the layout is rounded to other pixels.
    const other = await launch(`--force-device-scale-factor=${ratio}`, `--window-size=${1703 + k},${1001 + k}`);
    const page = await open(participant(`pixels${100 * ratio}`), { viewport: null }, other);
    await toTrials(page);
    const file = `pixels-${ratio}.png`;
    await page.screenshot({ path: `${out}/${file}` });
    const box = await image(page).evaluate((element) => element.getBoundingClientRect().toJSON());
    seen.shots[file] = { box, source: (await image(page).getAttribute("src")).slice(7, -4) };
    await other.close();
  }
}

async function previewed() {
  const blocked = await open("about:blank");
  await blocked.addInitScript(() => Object.defineProperty(window, "localStorage", { get() { throw new Error("blocked"); } }));
  await blocked.goto(`${preview}/`);
  await blocked.getByText("does not let the study store anything").waitFor();
  await look(blocked, "16-storage-blocked");
  const page = await open(`${preview}/`);
  await button(page, "I agree and take part").waitFor();
  seen.storedBeforeConsent = await page.evaluate(() => localStorage.length);
  await look(page, "14-preview");
  await toTrials(page);
  await look(page, "15-preview-trial");
  seen.banner = await page.locator("#preview:visible").textContent();
  const before = await page.locator(".question").textContent();
  await page.setViewportSize({ width: 700, height: 800 });
  await page.getByText("This window is too small").waitFor();
  await page.keyboard.press("ArrowRight"); // what is not seen cannot be answered
  await page.setViewportSize({ width: 1280, height: 800 });
  for (const key of ["Control+ArrowRight", "Alt+ArrowRight", "Meta+ArrowRight"]) await page.keyboard.press(key);
  await page.waitForTimeout(100);
  seen.unanswered = before === (await page.locator(".question").textContent());
  await page.keyboard.down("ArrowRight");
  await shown(page, 2);
  await page.keyboard.down("ArrowRight"); // it is held down
  await page.waitForTimeout(100);
  await shown(page, 2);
  await page.keyboard.up("ArrowRight");
  seen.announced = await page.getByRole("status").textContent();
  seen.questionFirst = await page.evaluate(() => Boolean(document.querySelector(".question").compareDocumentPosition(
    document.querySelector("#jspsych-image-button-response-stimulus")) & Node.DOCUMENT_POSITION_FOLLOWING));
  await page.reload();
  await button(page, "Go on").click();
  for (let number = 2; number <= 50; number++) {
    await shown(page, number);
    await page.keyboard.press(number % 2 ? "ArrowLeft" : "ArrowRight");
  }
  await page.getByText("Thank you").waitFor();
  await look(page, "17-preview-thanks");
  seen.code = await page.locator("code").textContent();
}

await Promise.all([whole, refused, broken, pixels, previewed].map((part) => part().catch((error) => {
  seen.errors.push(`${part.name}: ${error.stack}`);
})));
await browser.close();
console.log(JSON.stringify({ ...seen, hosts: [...new Set(seen.hosts)] }));
