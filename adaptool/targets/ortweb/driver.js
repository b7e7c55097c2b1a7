// Runs an export with ONNX Runtime Web, as manifest.json says. Factors of adapters are inputs of the
// graph: they are fetched once, and every answer may have others, at another strength.
import { Template } from "@huggingface/jinja";
import { Tokenizer } from "@huggingface/tokenizers";

const ARRAYS = {
  float32: Float32Array, float16: Uint16Array, int64: BigInt64Array, int32: Int32Array,
};
const STORED = { F32: "float32", F16: "float16" }; // types of a safetensors file
const SHOWN = 8; // numbers of an embedding, candidates for a word

export async function open(settings, { progress }) {
  const files = reader(settings.base);
  const manifest = await files.json("manifest.json");
  const device = settings.device ?? (await worthwhile(manifest) ? "webgpu" : "wasm");
  const ort = await runtime(settings.runtime["onnxruntime-web"], device);
  const total = Object.values(manifest.files).reduce((a, b) => a + b, 0);
  let before = 0;
  const fetched = {};
  for (const [name, size] of Object.entries(manifest.files)) {
    fetched[name] = await files.bytes(name, size,
      (done) => progress((before + done) / total, `Loading ${name}…`));
    before += size;
  }
  progress(null, "Preparing…");
  const onGpu = manifest.cache.map(({ present }) => [present, "gpu-buffer"]);
  const session = await ort.InferenceSession.create(fetched[manifest.model], {
    executionProviders: [device],
    externalData: manifest.data.map((path) => ({ path, data: fetched[path] })),
    logSeverityLevel: 3,
    ...(device === "webgpu" && onGpu.length
      ? { preferredOutputLocation: Object.fromEntries(onGpu) } : {}),
  });
  const config = await files.json(manifest.tokenizer.config);
  const tokenizer = new Tokenizer(await files.json(manifest.tokenizer.vocabulary), config);
  const engine = {
    ort, session, manifest, tokenizer, config, template: settings.template,
    factors: factors(ort, manifest, files, device),
  };
  const count = ort.env.wasm.numThreads;
  return {
    adapters: Object.keys(manifest.adapters),
    device: device === "webgpu" ? "WebGPU" : `WASM, ${count} thread${count === 1 ? "" : "s"}`,
    answer: (prompt, options) => ANSWERS[manifest.task](engine, prompt, options),
  };
}

// -- files ----------------------------------------------------------------------------------------

function reader(base) {
  async function answered(name) {
    const response = await fetch(new URL(name, base));
    if (!response.ok) throw new Error(`${name}: ${response.status} ${response.statusText}`);
    return response;
  }
  return {
    json: async (name) => (await answered(name)).json(),
    async bytes(name, size, progress) {
      const response = await answered(name);
      const bytes = new Uint8Array(size);
      let done = 0;
      for (const reading = response.body.getReader(); ;) {
        const { value, done: ended } = await reading.read();
        if (ended) break;
        if (done + value.length > size) throw new Error(`${name}: longer than the ${size} bytes stated`);
        bytes.set(value, done);
        done += value.length;
        progress?.(done);
      }
      if (done !== size) throw new Error(`${name}: ${done} bytes, ${size} are stated`);
      return bytes;
    },
  };
}

// Weights of 8 bits, and a GPU that is software, are faster without WebGPU.
async function worthwhile({ precision, half }) {
  const gpu = await navigator.gpu?.requestAdapter();
  if (!gpu || (gpu.info?.isFallbackAdapter ?? gpu.isFallbackAdapter)) return false;
  return !["q8", "int8", "uint8"].includes(precision) && (!half || gpu.features.has("shader-f16"));
}

async function runtime(home, device) {
  const ort = await import(`${home}ort.${device}.min.mjs`);
  const build = `${home}ort-wasm-simd-threaded${device === "webgpu" ? ".asyncify" : ""}`;
  ort.env.wasm.wasmPaths = { mjs: `${build}.mjs`, wasm: `${build}.wasm` };
  ort.env.logLevel = "error";
  return ort;
}

// -- adapters -------------------------------------------------------------------------------------

// name -> tensors by the graph's input names; "" has zeros of rank 1 (WebGPU takes no empty ones)
function factors(ort, manifest, files, device) {
  const slots = manifest.inputs.filter(({ role }) => role === "factor");
  const known = new Map();
  const none = () => Object.fromEntries(slots.map(({ name, type, dims }) => {
    const sizes = dims.map((size) => (typeof size === "number" ? size : 1));
    return [name, new ort.Tensor(type, new ARRAYS[type](product(sizes)), sizes)];
  }));
  async function fetched({ file, bytes: size }) {
    const bytes = await files.bytes(file, size);
    const length = Number(new DataView(bytes.buffer).getBigUint64(0, true));
    const { __metadata__: _, ...header } = JSON.parse(
      new TextDecoder().decode(bytes.subarray(8, 8 + length)));
    return Object.fromEntries(Object.entries(header).map(([name, { dtype, shape, data_offsets }]) => {
      const [start, end] = data_offsets.map((offset) => 8 + length + offset);
      const type = STORED[dtype];
      return [name, new ort.Tensor(type, new ARRAYS[type](bytes.slice(start, end).buffer), shape)];
    }));
  }
  return async (name) => {
    if (name && !manifest.adapters[name]) throw new Error(`There is no adapter ${name}.`);
    if (!known.has(name)) {
      const read = name ? fetched(manifest.adapters[name]) : Promise.resolve(none());
      const made = device === "webgpu" ? read.then((tensors) => uploaded(ort, tensors)) : read;
      known.set(name, made);
      made.catch(() => known.delete(name));
    }
    return known.get(name);
  };
}

// Tensors that lie on the GPU, so that they are not sent there for every token.
async function uploaded(ort, tensors) {
  const gpu = await ort.env.webgpu.device;
  return Object.fromEntries(Object.entries(tensors).map(([name, { type, dims, data }]) => {
    const buffer = gpu.createBuffer({
      size: Math.ceil(data.byteLength / 16) * 16,
      usage: GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC | GPUBufferUsage.COPY_DST,
      mappedAtCreation: true,
    });
    const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
    new Uint8Array(buffer.getMappedRange()).set(bytes);
    buffer.unmap();
    return [name, ort.Tensor.fromGpuBuffer(buffer, { dataType: type, dims })];
  }));
}

// -- running --------------------------------------------------------------------------------------

function product(sizes) {
  return sizes.reduce((a, b) => a * b, 1);
}

// Lets the page paint and hear a click: on WASM a run of the session blocks it.
function breath() {
  return new Promise((done) => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => { port1.close(); done(); };
    port2.postMessage(null);
  });
}

// What stays the same through an answer: the adapter's factors and its strength.
async function constants({ ort, manifest, factors: get }, { adapter, scale }) {
  const fixed = { ...await get(adapter ?? "") };
  for (const { name, role } of manifest.inputs) {
    if (role !== "scale") continue;
    fixed[name] = new ort.Tensor("float32", [adapter ? scale ?? manifest.scale : 0], []);
  }
  return fixed;
}

function inputs({ ort, manifest }, ids, past) {
  const row = (values) => new ort.Tensor("int64", BigInt64Array.from(values, BigInt), [1, values.length]);
  const made = {
    tokens: () => row(ids),
    mask: () => row(new Array(past + ids.length).fill(1)),
    positions: () => row(ids.map((_, i) => past + i)),
    types: () => row(ids.map(() => 0)),
    rows: () => new ort.Tensor("int64", [1n], []), // of the answer: that of the last token
  };
  const wanted = manifest.inputs.filter(({ role }) => made[role]);
  return Object.fromEntries(wanted.map(({ name, role }) => [name, made[role]()]));
}

function emptyCache({ ort, manifest }) {
  return Object.fromEntries(manifest.inputs.filter(({ role }) => role === "past").map(
    ({ name, type, dims }) => {
      const sizes = dims.map((size) => (size === "batch_size" ? 1 : typeof size === "number" ? size : 0));
      return [name, new ort.Tensor(type, new ARRAYS[type](0), sizes)];
    }));
}

// Half precision as whole numbers in the same order, where the browser has no Float16Array.
function comparable(data) {
  return data instanceof Uint16Array
    ? (i) => (data[i] & 0x8000 ? -(data[i] & 0x7fff) : data[i]) : (i) => data[i];
}

function largest({ data, dims }) {
  const width = dims.at(-1);
  const value = comparable(data);
  let best = data.length - width; // of the last token
  for (let i = best + 1; i < data.length; i++) if (value(i) > value(best)) best = i;
  return best % width;
}

function encoded({ manifest, tokenizer, config, template }, prompt) {
  if (!template && manifest.templated) {
    const text = new Template(config.chat_template).render({
      messages: [{ role: "user", content: prompt }], add_generation_prompt: true,
      bos_token: plain(config.bos_token), eos_token: plain(config.eos_token),
    });
    return tokenizer.encode(text, { add_special_tokens: false }).ids;
  }
  return tokenizer.encode(template ? template.replace("{prompt}", () => prompt) : prompt).ids;
}

function plain(token) {
  return token?.content ?? token ?? "";
}

async function generated(engine, prompt, options) {
  const { session, manifest, tokenizer } = engine;
  const fixed = await constants(engine, options);
  const made = [];
  let ids = encoded(engine, prompt);
  let past = 0;
  let cache = emptyCache(engine);
  let text = "";
  while (made.length < options.maxTokens && !options.signal?.aborted) {
    const outputs = await session.run({ ...fixed, ...cache, ...inputs(engine, ids, past) });
    for (const tensor of Object.values(cache)) tensor.dispose();
    cache = Object.fromEntries(
      manifest.cache.map(({ past: name, present }) => [name, outputs[present]]));
    past += ids.length;
    await breath();
    const next = largest(outputs[manifest.answer]);
    if (manifest.eos.includes(next)) break;
    made.push(next);
    ids = [next];
    text = tokenizer.decode(made, { skip_special_tokens: true });
    if (!text.endsWith("\ufffd")) options.token?.(text); // else the token ends within a character
  }
  for (const tensor of Object.values(cache)) tensor.dispose();
  return { text, tokens: made.length };
}

// -- tasks other than generation ------------------------------------------------------------------

async function once(engine, prompt, options) {
  const ids = engine.tokenizer.encode(prompt).ids;
  const outputs = await engine.session.run(
    { ...await constants(engine, options), ...inputs(engine, ids, 0) });
  const { data, dims } = outputs[engine.manifest.answer];
  const width = dims.at(-1);
  const rows = Array.from({ length: data.length / width },
    (_, i) => Array.from(data.subarray(i * width, (i + 1) * width)));
  return { ids, rows };
}

function softmax(values) {
  const top = Math.max(...values);
  const raised = values.map((value) => Math.exp(value - top));
  const sum = raised.reduce((a, b) => a + b, 0);
  return raised.map((value) => value / sum);
}

function ranked(labels, scores) {
  return labels.map((label, i) => [label, scores[i]]).sort(([, a], [, b]) => b - a);
}

const ANSWERS = {
  "text-generation": generated,
  "text-classification": async (engine, prompt, options) => {
    const { rows: [logits] } = await once(engine, prompt, options);
    const scores = engine.manifest.independent
      ? logits.map((value) => 1 / (1 + Math.exp(-value))) : softmax(logits);
    const rows = ranked(engine.manifest.labels, scores);
    return { text: rows[0][0], rows };
  },
  "token-classification": async (engine, prompt, options) => {
    const { ids, rows } = await once(engine, prompt, options);
    const found = rows.map((logits, i) => {
      const [label, score] = ranked(engine.manifest.labels, softmax(logits))[0];
      return [engine.tokenizer.decode([ids[i]], { skip_special_tokens: true }).trim(), label, score];
    }).filter(([word, label]) => word && label !== "O");
    return {
      text: found.map(([word, label]) => `${word}: ${label}`).join(", "),
      rows: found.map(([word, label, score]) => [`${word}: ${label}`, score]),
    };
  },
  "fill-mask": async (engine, prompt, options) => {
    const mask = plain(engine.config.mask_token);
    const { ids, rows } = await once(engine, prompt.replace("[MASK]", mask), options);
    const at = ids.indexOf(engine.tokenizer.token_to_id(mask));
    if (at < 0) throw new Error(`Write ${mask} where a word is missing.`);
    const scores = softmax(rows[at]).map((score, id) => [id, score]).sort(([, a], [, b]) => b - a);
    const best = scores.slice(0, SHOWN).map(([id, score]) => [engine.tokenizer.decode([id]), score]);
    return { text: best[0][0], rows: best };
  },
  "feature-extraction": async (engine, prompt, options) => {
    const { rows } = await once(engine, prompt, options);
    const mean = rows[0].map((_, i) => rows.reduce((sum, row) => sum + row[i], 0) / rows.length);
    const norm = Math.hypot(...mean);
    const shown = mean.slice(0, SHOWN).map((value, i) => [String(i), value / norm]);
    return { text: `${mean.length} numbers, the first ${shown.length}:`, rows: shown };
  },
};
