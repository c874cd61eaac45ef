"""How few bits a trained weight needs: the methods, each a small function of a weight and what flows into it.

- `round_to_nearest`: the baseline, with a scale per row, per tensor or per group of columns;
- `gptq`: column by column, each rounding's error made good by the columns that follow;
- `awq`: the columns that meet large activations are scaled up before rounding;
- `split_outliers`: LLM.int8(), where few columns of large activations stay as they are;
- `quantization_report`: what each method costs a model, in size, output error and perplexity.

All give back a `Quantized`: integers, scales, and the weight that these stand for. To run a model from packed blocks,
see `wootz.models.quantize_blocks`; this package answers which method and how many bits.
"""

from wootz.models.weight_quantization.awq import AWQ, awq
from wootz.models.weight_quantization.gptq import gptq, input_hessian
from wootz.models.weight_quantization.outliers import Int8WithOutliers, split_outliers
from wootz.models.weight_quantization.report import METHODS, Measured, Method, quantization_report, quantize_model
from wootz.models.weight_quantization.rounding import Quantized, round_to_nearest

__all__ = [
    "AWQ",
    "METHODS",
    "Int8WithOutliers",
    "Measured",
    "Method",
    "Quantized",
    "awq",
    "gptq",
    "input_hessian",
    "quantization_report",
    "quantize_model",
    "round_to_nearest",
    "split_outliers",
]
