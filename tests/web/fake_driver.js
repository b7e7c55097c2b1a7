// A model without a model: says again what it was asked, and how, word by word.
import { mark } from "fake";

const wait = (ms) => new Promise((done) => setTimeout(done, ms));

export async function open(settings, { progress }) {
  progress(null, "Looking");
  if (settings.refusal) throw new Error(settings.refusal);
  for (const part of [0.25, 0.5, 1]) {
    progress(part, `Loading ${100 * part} %`);
    await wait(1);
  }
  window.fake = { settings, running: 0, most: 0, asked: 0, tasks: [] };
  return { adapters: settings.adapters, device: `fake ${mark}`, answer };
}

async function answer(prompt, { adapter, scale, token, signal, maxTokens }) {
  const { fake } = window;
  fake.asked += 1;
  fake.running += 1;
  fake.most = Math.max(fake.most, fake.running);
  try {
    if (prompt.startsWith("fail")) throw new Error(prompt);
    if (fake.settings.task !== "text-generation") {
      return { text: "", rows: [["good", 0.75], ["<b>bad</b>", 0.123456]] };
    }
    const words = `${adapter || "base"} ${scale} says ${prompt} to ${maxTokens}`.split(" ");
    const long = prompt.startsWith("long") ? words.concat(Array(10000).fill("and")) : words;
    for (let i = 1; i <= long.length; i += 1) {
      if (signal.aborted) return { text: "", tokens: 0 };
      token(long.slice(0, i).join(" "));
      await wait(5);
    }
    return { text: long.join(" "), tokens: long.length };
  } finally {
    fake.running -= 1;
  }
}
