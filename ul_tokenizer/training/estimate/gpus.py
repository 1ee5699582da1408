"""GPUs that a dry run plans for, with their peaks as NVIDIA states them."""

from __future__ import annotations

from typing import NamedTuple


class Gpu(NamedTuple):
    """A GPU; peaks are dense, without structured sparsity, and of products that accumulate in fp32."""

    name: str
    memory_gb: int  # 1 GB = 10⁹ bytes
    half_tflops: float  # bf16 and fp16 on tensor cores, 10¹² FLOP/s
    tf32_tflops: float
    fp32_tflops: float  # without tensor cores
    source: str

    def peak(self, mixed_precision: str, allow_tf32: bool) -> tuple[float, str]:
        """FLOP/s of matrix products in a precision, and the name of the format in which they are computed."""
        if mixed_precision != "no":
            return 1e12 * self.half_tflops, mixed_precision
        return (1e12 * self.tf32_tflops, "TF32") if allow_tf32 else (1e12 * self.fp32_tflops, "fp32")


GPUS = {
    "h100": Gpu("H100 SXM", 80, 989.4, 494.7, 66.9, "NVIDIA H100 Tensor Core GPU architecture white paper"),
    "a100": Gpu("A100 SXM", 80, 312.0, 156.0, 19.5, "NVIDIA A100 Tensor Core GPU data sheet"),
    "l40s": Gpu("L40S", 48, 362.05, 183.0, 91.6, "NVIDIA L40S data sheet"),
    "rtx4090": Gpu("GeForce RTX 4090", 24, 165.2, 82.6, 82.6, "NVIDIA Ada GPU architecture white paper"),
}
