"""``python -m benchmarks NAME [options]``: run one benchmark; without a name, list them."""

import runpy
import sys

BENCHMARKS = {
    "quality": ("benchmarks.quality.run", "every set, every method, default settings"),
    "quality-peer": ("benchmarks.quality.peers", "the same rows by PEFT and transformers.Trainer"),
    "quality-report": ("benchmarks.quality.report", "tables and plots of the finished runs"),
    "few-shot": ("benchmarks.quality.few_shot", "8 to 64 training rows, against PEFT and Trainer"),
    "few-shot-report": ("benchmarks.quality.few_shot_report", "table and plot of those runs"),
    "activations": ("benchmarks.activations", "frozen layers reused, layers computed twice"),
    "training": ("benchmarks.training.compare", "rows per second against PEFT and Trainer"),
    "cotraining": ("benchmarks.cotraining.compare", "jobs in one forward against one by one"),
    "decode": ("benchmarks.serving.decode", "tokens per second against transformers and PEFT"),
    "serving-six-kinds": ("benchmarks.serving.six_kinds", "six kinds in one batch, to the base"),
    "serving-adapter-counts": (
        "benchmarks.serving.adapter_counts",
        "answers a second by number of adapters",
    ),
    "serving-cold": ("benchmarks.serving.cold", "loads, and answers of cold adapters"),
    "serving-hot-load": ("benchmarks.serving.hot_load", "what running rows notice of a load"),
    "serving-api-share": ("benchmarks.serving.api_share", "what the api adds to a /predict"),
    "serving-beside-batches": (
        "benchmarks.serving.beside_batches",
        "what somebody who waits pays while a batch runs",
    ),
    "serving-soak": (
        "benchmarks.serving.soak",
        "everything at once for minutes, every answer checked",
    ),
    "quantization-latency": (
        "benchmarks.compression.quantized_latency",
        "forwards of quantized bases against fp32",
    ),
    "quantization-perplexity": (
        "benchmarks.compression.quantized_perplexity",
        "what quantization costs before any tuning",
    ),
    "quantization-quality": (
        "benchmarks.compression.quantized_quality",
        "what quantization costs after tuning on the quantized base",
    ),
    "pruning-perplexity": ("benchmarks.compression.perplexity", "Wanda against magnitude"),
    "pruning-recovery": ("benchmarks.compression.recovery", "quality of pruned bases, recovered"),
    "pruning-latency": ("benchmarks.compression.pruned_latency", "forward time of pruned bases"),
    "compression-plots": (
        "benchmarks.compression.plots",
        "quality of smaller bases against bytes and latency",
    ),
    "serving-plots": ("benchmarks.serving.plots", "plots of the finished serving benchmarks"),
    "estimates": ("benchmarks.estimates", "estimated seconds and bytes against those of the runs"),
    "first-step": ("benchmarks.first_step", "seconds from POST /jobs to the first step"),
}


def main() -> None:
    """Hand over to the benchmark that was named."""
    named = [argument for argument in sys.argv[1:] if argument in BENCHMARKS]
    if not named:
        for name, (_, what) in BENCHMARKS.items():
            print(f"{name:20} {what}")
        return
    sys.argv.remove(named[0])
    runpy.run_module(BENCHMARKS[named[0]][0], run_name="__main__")


if __name__ == "__main__":
    main()
