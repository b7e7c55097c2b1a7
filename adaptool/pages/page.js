// Asks the model, shows what it says, stops it. What knows the runtime is driver.js:
//
//   open(settings, { progress }) -> model
//       settings  page.json, with `base`, the URL of this folder, and `runtime`, package -> URL of
//                 the folder in which its further files lie; all end in "/"
//       progress  (fraction or null, text)
//   model.adapters  names; empty if there is nothing to choose
//   model.device    what it runs on, in words
//   model.answer(prompt, { adapter, scale, token, signal, maxTokens }) -> { text, tokens }
//       adapter   a name, or "" for the base alone
//       token     (text so far), as it comes
//     or, for other tasks than text-generation, -> { text, rows: [[label, number], ...] }
//
// For programs: adaptool.ready is a promise of whether the model could be loaded; the body's
// data-state is loading, ready, answering or failed, and data-answers counts answers that ended.

const PAUSE = 200; // ms without a move of the slider before the question is asked again

const at = (id) => document.getElementById(id);
const entries = JSON.parse(document.querySelector("script[type=importmap]").textContent).imports;

let settings = null;
let model = null; // once it is loaded
let scale = 1; // as stated or chosen; the slider knows steps only
let asked = null; // the prompt that was sent last
let turn = null; // the answer that is being made: { controller, ended }
let pause = 0;

window.adaptool = { ready: start() };

async function start() {
  prepareTheme();
  say("loading", "Loading…");
  try {
    settings = absolute(await fetched("page.json"));
    const { open } = await import("./driver.js");
    model = await open(settings, { progress });
  } catch (error) {
    console.warn(error);
    say("failed", await explained(error));
    return false;
  } finally {
    at("progress").hidden = true;
  }
  at("device").textContent = model.device;
  offerAdapters();
  listen();
  at("send").disabled = false;
  say("ready", "Ready.");
  return true;
}

async function fetched(name) {
  const response = await fetch(new URL(name, import.meta.url));
  if (!response.ok) throw new Error(`${name}: ${response.status} ${response.statusText}`);
  return response.json();
}

function absolute(stated) {
  const base = new URL("./", import.meta.url).href;
  const runtime = Object.entries(stated.runtime).map(([name, url]) => [name, new URL(url, base).href]);
  return { ...stated, base, runtime: Object.fromEntries(runtime) };
}

function progress(fraction, text) {
  if (model) return;
  if (fraction === null) at("progress").removeAttribute("value");
  else at("progress").value = fraction;
  if (text) say("loading", text);
}

function say(state, text) {
  document.body.dataset.state = state;
  if (at("status").textContent !== text) at("status").textContent = text;
}

// -- what can be chosen ---------------------------------------------------------------------------

function offerAdapters() {
  if (!model.adapters.length) return;
  at("adapter").append(new Option("none", ""), ...model.adapters.map((name) => new Option(name, name)));
  at("adapter").value = model.adapters[0];
  scale = settings.scale;
  const slider = at("scale");
  slider.min = Math.min(0, Math.floor(scale));
  slider.max = Math.max(2, Math.ceil(scale));
  slider.value = scale;
  showScale();
  at("choice").hidden = false;
}

function showScale() {
  at("scale-value").textContent = String(Number(scale.toFixed(3)));
}

function listen() {
  at("question").addEventListener("submit", (event) => {
    event.preventDefault();
    if (at("prompt").value.trim()) ask(at("prompt").value);
    else at("prompt").focus();
  });
  at("prompt").addEventListener("keydown", (event) => {
    // Enter that ends the composition of a character sends nothing
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    at("question").requestSubmit();
  });
  document.addEventListener("keydown", (event) => event.key === "Escape" && stop());
  at("stop").addEventListener("click", stop);
  at("adapter").addEventListener("change", () => {
    at("scale").disabled = at("adapter").value === "";
    askAgain(0);
  });
  at("scale").addEventListener("input", () => {
    scale = at("scale").valueAsNumber;
    showScale();
    askAgain(PAUSE);
  });
}

function askAgain(wait) {
  clearTimeout(pause);
  if (asked !== null) pause = setTimeout(() => ask(asked), wait);
}

// -- questions and answers ------------------------------------------------------------------------

function ask(prompt) {
  clearTimeout(pause);
  const before = turn;
  before?.controller.abort();
  asked = prompt;
  const mine = { controller: new AbortController() };
  turn = mine;
  at("stop").disabled = false;
  at("answer").setAttribute("aria-busy", "true"); // to be read out when it is whole
  say("answering", "Answering…");
  mine.ended = answer(prompt, mine.controller.signal, before?.ended).then((end) => {
    if (turn !== mine) return; // asked again meanwhile
    turn = null;
    at("answer").setAttribute("aria-busy", "false");
    if (document.activeElement === at("stop")) at("prompt").focus();
    at("stop").disabled = true;
    say(...end);
    document.body.dataset.answers = Number(document.body.dataset.answers ?? 0) + 1;
  });
}

function stop() {
  clearTimeout(pause);
  if (!turn) return;
  say("answering", "Stopping…");
  turn.controller.abort();
}

// One answer, after the one before has ended; returns the state that it leaves, and words for it.
async function answer(prompt, signal, before) {
  await before;
  if (signal.aborted) return ["ready", "Stopped."];
  show("", []);
  const clock = { began: performance.now(), first: null, tokens: 0 };
  const token = (text) => {
    if (signal.aborted) return;
    clock.first ??= performance.now();
    clock.tokens += 1;
    at("answer").textContent = text.trimStart();
    showSpeed(clock);
  };
  const adapter = at("adapter").value;
  try {
    const { maxTokens } = settings;
    const given = await model.answer(prompt, { adapter, scale, token, signal, maxTokens });
    if (signal.aborted) return ["ready", "Stopped."];
    show(given.text, given.rows ?? []);
    clock.tokens = given.tokens ?? 0;
    showSpeed(clock);
    return ["ready", "Ready."];
  } catch (error) {
    if (signal.aborted) return ["ready", "Stopped."];
    console.warn(error);
    return ["failed", await explained(error)];
  }
}

function show(text, rows) {
  at("answer").textContent = text.trimStart(); // models begin with the space behind their prompt
  at("rows").hidden = !rows.length;
  at("rows").tBodies[0].replaceChildren(...rows.map(([label, value]) => {
    const row = document.createElement("tr");
    row.append(cell(label), cell(Number(value.toPrecision(4))));
    return row;
  }));
}

function cell(content) {
  const made = document.createElement("td");
  made.textContent = content;
  return made;
}

// The first token waits for the whole prompt to be read: the others tell the speed.
function showSpeed({ began, first, tokens }) {
  const now = performance.now();
  const words = [];
  if (tokens > 0) words.push(`${tokens} token${tokens === 1 ? "" : "s"}`);
  if (tokens > 1 && first < now) words.push(`${((tokens - 1) * 1000 / (now - first)).toFixed(1)} tokens/s`);
  at("speed").textContent = words.join(", ") || `${(now - began).toFixed(0)} ms`;
}

// -- what went wrong, in words --------------------------------------------------------------------

async function explained(error) {
  const text = error?.message || String(error);
  const missing = model ? [] : await missingPackages();
  if (missing === null) return "The server does not answer. Start it again, then reload this page.";
  if (missing.length) {
    return `The runtime is missing: ${missing.join(", ")}.\nRun "npm install" in this folder, then reload.`;
  }
  if (/webgpu/i.test(text) && !(await navigator.gpu?.requestAdapter().catch(() => null))) {
    return `This browser gives no WebGPU, which this model needs.\nTry a recent Chrome, Edge or Safari with graphics acceleration on. (${text})`;
  }
  if (/out of memory|\bOOM\b|bad_alloc|allocation failed|could not allocate/i.test(text)) {
    return `There is not enough memory for this model.\nClose other tabs, or export a smaller --dtype. (${text})`;
  }
  return text;
}

// Names of packages whose files are not there; null where nobody answers at all.
async function missingPackages() {
  try {
    const found = await Promise.all(Object.entries(entries).map(async ([name, url]) => {
      const { ok } = await fetch(new URL(url, import.meta.url), { method: "HEAD" });
      return ok ? [] : [name];
    }));
    return found.flat();
  } catch {
    return null;
  }
}

// -- light and dark -------------------------------------------------------------------------------

function prepareTheme() {
  const stored = kept();
  if (stored) document.documentElement.dataset.theme = stored;
  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (document.documentElement.dataset.theme ?? (system.matches ? "dark" : "light")) === "dark";
  const show = () => at("theme").setAttribute("aria-pressed", isDark());
  show();
  system.addEventListener("change", show);
  at("theme").addEventListener("click", () => {
    const theme = isDark() ? "light" : "dark";
    document.documentElement.dataset.theme = theme;
    kept(theme);
    show();
  });
}

// What the button was set to last time; a browser that keeps nothing follows the system.
function kept(theme) {
  try {
    if (theme) localStorage.setItem("adaptool-theme", theme);
    return localStorage.getItem("adaptool-theme");
  } catch {
    return null;
  }
}
