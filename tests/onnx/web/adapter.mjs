// An .onnx_adapter file as tensors by name: the flatbuffer of adapter_schema.fbs.
export function readAdapter(buffer, ort) {
  const view = new DataView(buffer.buffer, buffer.byteOffset, buffer.byteLength);
  const word = (at) => view.getUint32(at, true);
  const follow = (at) => at + word(at);
  const field = (table, index) => {
    const vtable = table - view.getInt32(table, true);
    const at = 4 + 2 * index;
    const offset = at < view.getUint16(vtable, true) ? view.getUint16(vtable + at, true) : 0;
    return offset ? table + offset : 0;
  };
  const kinds = { 1: ["float32", Float32Array], 10: ["float16", Uint16Array] };
  const tensors = {};
  const list = follow(field(word(0), 3));
  for (let i = 0; i < word(list); i++) {
    const table = follow(list + 4 + 4 * i);
    const name = follow(field(table, 0));
    const dims = follow(field(table, 1));
    const data = follow(field(table, 3));
    const key = new TextDecoder().decode(buffer.subarray(name + 4, name + 4 + word(name)));
    const sizes = Array.from({ length: word(dims) }, (_, k) =>
      Number(view.getBigInt64(dims + 4 + 8 * k, true)));
    const [type, Values] = kinds[view.getInt32(field(table, 2), true)];
    const bytes = buffer.slice(data + 4, data + 4 + word(data));
    tensors[key] = new ort.Tensor(type, new Values(bytes.buffer), sizes);
  }
  return tensors;
}
