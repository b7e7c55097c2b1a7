// Runs an export with transformers.js, on WebGPU where that is a real one, else on WASM.
import { env, InterruptableStoppingCriteria, LogLevel, pipeline, TextStreamer }
  from "@huggingface/transformers";

const INT8 = new Set(["q8", "int8", "uint8"]); // computed on the CPU even on WebGPU
const HALVES = new Set(["fp16", "q4f16", "q2f16", "q1f16"]);
const SHOWN = 8; // numbers of an embedding

export async function open(settings, { progress }) {
  const wasm = env.backends.onnx.wasm;
  const home = `${settings.runtime["onnxruntime-web"]}ort-wasm-simd-threaded.asyncify`;
  wasm.wasmPaths = { mjs: `${home}.mjs`, wasm: `${home}.wasm` };
  env.logLevel = LogLevel.ERROR;
  env.allowLocalModels = true; // not the default in browsers
  env.allowRemoteModels = false;
  env.useBrowserCache = false; // it never asks whether a file has changed
  env.useWasmCache = false;
  const { device, dtype } = await chosen(settings);
  const run = await pipeline(settings.task, new URL(settings.base).pathname, {
    device, dtype, progress_callback: reported(progress),
  });
  breathe(run.model);
  const answer = settings.task === "text-generation" ? generated : ANSWERS[settings.task];
  if (!answer) throw new Error(`No answers to show for ${settings.task}.`);
  return {
    adapters: [],
    device: device === "webgpu" ? "WebGPU" : `WASM, ${threads(wasm.numThreads)}`,
    answer: (prompt, options) => answer(run, prompt, options, settings),
  };
}

// Lets the page paint and hear a click before each step: on WASM a step blocks it.
function breathe(model) {
  const forward = model.forward.bind(model);
  model.forward = async (given) => {
    await new Promise((done) => {
      const { port1, port2 } = new MessageChannel();
      port1.onmessage = () => { port1.close(); done(); };
      port2.postMessage(null);
    });
    return forward(given);
  };
}

async function chosen({ device, dtype, dtypes }) {
  const offered = dtype ? [dtype] : dtypes;
  if (device) return { device, dtype: offered[0] };
  const gpu = await navigator.gpu?.requestAdapter();
  const software = !gpu || (gpu.info?.isFallbackAdapter ?? gpu.isFallbackAdapter);
  const fast = software ? undefined : offered.find(
    (name) => !INT8.has(name) && (!HALVES.has(name) || gpu.features.has("shader-f16")));
  return fast ? { device: "webgpu", dtype: fast } : { device: "wasm", dtype: offered[0] };
}

function threads(count) {
  return count === 1 ? "1 thread" : `${count} threads`;
}

function reported(progress) {
  const files = new Map();
  return ({ status, file, loaded, total }) => {
    if (status !== "progress") return;
    files.set(file, [loaded, total]);
    const [done, all] = [...files.values()].reduce(([a, b], [c, d]) => [a + c, b + d], [0, 0]);
    progress(all ? done / all : null, `Loading ${file}…`);
  };
}

async function generated(run, prompt, { token, signal, maxTokens }, { template }) {
  const stopping = new InterruptableStoppingCriteria();
  signal?.addEventListener("abort", () => stopping.interrupt(), { once: true });
  if (signal?.aborted) stopping.interrupt();
  const made = { text: "", tokens: 0 };
  const streamer = new TextStreamer(run.tokenizer, {
    skip_prompt: true,
    skip_special_tokens: true,
    callback_function: (piece) => token?.(made.text += piece),
    token_callback_function: () => { made.tokens += 1; },
  });
  const chat = !template && run.tokenizer.chat_template;
  const asked = template ? template.replace("{prompt}", () => prompt) : prompt;
  await run(chat ? [{ role: "user", content: prompt }] : asked, {
    max_new_tokens: maxTokens,
    add_special_tokens: !chat, // a chat template writes them itself
    streamer,
    stopping_criteria: stopping,
  });
  return made;
}

const ANSWERS = {
  "text-classification": async (run, prompt) => {
    const found = await run(prompt, { top_k: null });
    return { text: found[0].label, rows: found.map(({ label, score }) => [label, score]) };
  },
  "token-classification": async (run, prompt) => {
    const rows = (await run(prompt)).map(({ word, entity, score }) => [`${word}: ${entity}`, score]);
    return { text: rows.map(([label]) => label).join(", "), rows };
  },
  "fill-mask": async (run, prompt) => {
    const found = await run(prompt.replace("[MASK]", run.tokenizer.mask_token));
    return { text: found[0].sequence, rows: found.map((one) => [one.token_str, one.score]) };
  },
  "question-answering": async (run, prompt) => {
    const [question, ...context] = prompt.split("\n"); // the text to look in stands below
    const found = await run(question, context.join("\n"));
    return { text: found.answer, rows: [[found.answer, found.score]] };
  },
  "feature-extraction": async (run, prompt) => {
    const { data } = await run(prompt, { pooling: "mean", normalize: true });
    const rows = Array.from(data.slice(0, SHOWN), (value, i) => [String(i), value]);
    return { text: `${data.length} numbers, the first ${rows.length}:`, rows };
  },
};
