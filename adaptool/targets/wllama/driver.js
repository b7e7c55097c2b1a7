// The page's link to @wllama/wllama, which is llama.cpp in WebAssembly.
//
// Adapters stay files of their own beside the model. wllama stages the blobs that it is given as
// models/model-0000I-of-0000N.gguf and loads the first as the model, so the others can be named as
// its adapters; every request then says how strong each of them is.
import { Wllama } from "@wllama/wllama";

const PACKAGE = "@wllama/wllama";
const DIGITS = 5; // of the numbers in the names of parts
const WARNINGS = 3; // what of llama.cpp's log is kept, to explain a failure

export async function open(settings, { progress }) {
  if (!has64BitMemory()) {
    throw new Error("This browser has no 64-bit WebAssembly memory, which @wllama/wllama needs");
  }
  const log = journal();
  const wasm = new URL("wllama.wasm", settings.runtime[PACKAGE]).href;
  const wllama = new Wllama({ default: wasm }, { logger: log });
  const blobs = await download([...settings.files, ...settings.adapterFiles], settings.base, progress);
  progress(null, "Starting llama.cpp");
  const onGpu = await computesHalf();
  await log.explain(() => load(wllama, blobs, {
    n_ctx: settings.context,
    n_parallel: 1,
    n_gpu_layers: onGpu ? undefined : 0,
    log_level: WARNINGS,
    reasoning_format: "none",
    ...staged(settings.adapterFiles.length, blobs.length),
  }));
  const threads = wllama.getNumThreads();
  return {
    adapters: settings.adapters,
    device: onGpu ? "WebGPU" : `WASM, ${threads} ${threads === 1 ? "thread" : "threads"}`,
    answer: (prompt, options) => log.explain(() => answer(wllama, settings, prompt, options)),
  };
}

/** wllama itself takes a model that llama.cpp refused for loaded. */
async function load(wllama, blobs, params) {
  await wllama.loadModel(blobs, params);
  if (!wllama.getLoadedContextInfo().success) throw new Error("llama.cpp does not load this model");
}

async function answer(wllama, settings, prompt, { adapter, scale, token, signal, maxTokens }) {
  let text = "";
  let tokens = 0;
  const options = {
    max_tokens: maxTokens ?? settings.maxTokens,
    temperature: 0,
    stream: true,
    abortSignal: signal,
    onData: (chunk) => {
      const { delta, text: more } = chunk.choices[0] ?? {};
      const piece = more ?? delta?.content ?? "";
      tokens = chunk.timings?.predicted_n ?? tokens + (piece ? 1 : 0);
      if (!piece) return;
      text += piece;
      token?.(text);
    },
  };
  if (settings.adapters.length) {
    // One that is not named here would keep the scale of its loading. What was cached of a prompt
    // is found by its tokens alone, whichever adapter computed it.
    options.lora = settings.adapters.map((name, id) => ({ id, scale: name === adapter ? scale : 0 }));
    options.cache_prompt = false;
  }
  if (settings.template === null && settings.chat) {
    const messages = [{ role: "user", content: prompt }];
    await wllama.createChatCompletion({ ...options, messages });
  } else {
    const whole = (settings.template ?? "{prompt}").replaceAll("{prompt}", () => prompt);
    await wllama.createCompletion({ ...options, prompt: whole });
  }
  return { text, tokens };
}

/** The last `count` of `total` blobs as adapters that are off until a request says otherwise. */
function staged(count, total) {
  if (!count) return {};
  const padded = (number) => String(number).padStart(DIGITS, "0");
  const numbers = Array.from({ length: count }, (_, index) => total - count + index + 1);
  const path = (number) => `models/model-${padded(number)}-of-${padded(total)}.gguf`;
  return {
    lora_adapters: numbers.map((number) => ({ path: path(number), scale: 0 })),
    lora_init_without_apply: true,
  };
}

async function download(files, base, progress) {
  const total = files.reduce((sum, file) => sum + file.bytes, 0);
  let passed = 0;
  const tell = (count) => {
    passed += count;
    progress(Math.min(passed / total, 1), `Loading ${megabytes(passed)} of ${megabytes(total)}`);
  };
  return Promise.all(files.map((file) => fetched(file, base, tell)));
}

/** A file as a blob, which browsers keep outside of the page's memory while it arrives. */
async function fetched({ name, bytes }, base, tell) {
  const response = await fetch(new URL(name.split("/").map(encodeURIComponent).join("/"), base));
  if (!response.ok) throw new Error(`${name}: ${response.status} ${response.statusText}`);
  const counted = new TransformStream({
    transform(piece, controller) {
      tell(piece.byteLength);
      controller.enqueue(piece);
    },
  });
  const blob = await new Response(response.body.pipeThrough(counted)).blob();
  if (blob.size !== bytes) {
    throw new Error(`${name}: ${blob.size} bytes arrived, ${bytes} were expected: reload the page`);
  }
  return blob;
}

function megabytes(bytes) {
  return `${(bytes / 1e6).toFixed(1)} MB`;
}

/** A logger that keeps what llama.cpp complains of, which its exceptions do not tell. */
function journal() {
  let lines = [];
  const keep = (...words) => lines.push(words.map((word) => word?.message ?? String(word)).join(" "));
  return {
    debug() {},
    log() {},
    warn() {},
    error: keep,
    async explain(run) {
      lines = [];
      try {
        return await run();
      } catch (error) {
        if (error.name === "AbortError") throw error;
        if (lines.some((line) => line.includes("invalid UTF-8"))) {
          throw new Error("The model wrote bytes that are no text (invalid UTF-8)", { cause: error });
        }
        const [reason] = lines.filter((line) => line.trim() && !line.startsWith("Stack trace"));
        throw reason ? new Error(`${error.message} (${reason.trim()})`, { cause: error }) : error;
      }
    },
  };
}

function has64BitMemory() {
  try {
    return Boolean(new WebAssembly.Memory({ address: "i64", initial: 1n }));
  } catch {
    return false;
  }
}

/** Whether llama.cpp finds a GPU that it can use: it computes with half floats there. */
async function computesHalf() {
  if (!WebAssembly.Suspending) return false;
  const adapter = await navigator.gpu?.requestAdapter().catch(() => null);
  return adapter?.features.has("shader-f16") ?? false;
}
