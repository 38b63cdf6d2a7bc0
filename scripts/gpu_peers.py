#!/usr/bin/env python3
"""Times cuDNN and FlashAttention, as PyTorch offers them, on the shapes of tests/gpu/bench: gpu_peers.py [FILTER].

They read contiguous keys and values, so they move the bytes of our rows without a block table. Timing is that of
quire_gpu_bench: replays of a CUDA graph, 256 MB written before each, medians. A cell is empty where PyTorch refuses the
shape. Rows that need several calls (differential attention) leave out what would come between and after them.
"""

import statistics
import sys
import time
from dataclasses import dataclass

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

BACKENDS = {"cuDNN": SDPBackend.CUDNN_ATTENTION, "FlashAttention-2": SDPBackend.FLASH_ATTENTION}
FLUSH_BYTES = 256 << 20
REPEATS, PREFILL_REPEATS = 31, 7
WARM_UP = 3
REST_SECONDS = 0.2  # as quire_gpu_bench, after what drew so much power that the clocks fell


@dataclass
class Row:
    name: str
    batch: int
    seq_len: int
    q_heads: int = 32
    kv_heads: int = 8
    head_size: int = 128
    head_size_v: int = 128
    is_prefill: bool = False
    is_differential: bool = False  # heads are pairs: two softmaxes over the values of both


def decode(name, batch, seq_len, **shape):
    return Row(f"decode {name}", batch, seq_len, **shape)


ROWS = [
    decode("1x1k", 1, 1024),
    decode("1x8k", 1, 8192),
    decode("1x32k", 1, 32768),
    decode("1x128k", 1, 131072),
    decode("16x8k", 16, 8192),
    decode("64x1k", 64, 1024),
    decode("64x8k", 64, 8192),
    decode("256x4k", 256, 4096),
    decode("16x32k", 16, 32768),
    decode("64x4k", 64, 4096),
    Row("DIFFKV 192/128 decode 16x8k", 16, 8192, head_size=192),
    Row("differential decode 16x8k", 16, 8192, 16, 16, 64, 64, is_differential=True),
    decode("d64 64x8k", 64, 8192, head_size=64, head_size_v=64),
    decode("d256 64x4k", 64, 4096, head_size=256, head_size_v=256),
    Row("prefill causal d128 1x2k", 1, 2048, is_prefill=True),
    Row("prefill causal d128 1x8k", 1, 8192, is_prefill=True),
    Row("prefill causal d64 1x8k", 1, 8192, head_size=64, head_size_v=64, is_prefill=True),
    Row("prefill causal d256 1x8k", 1, 8192, head_size=256, head_size_v=256, is_prefill=True),
    Row("prefill differential 1x8k", 1, 8192, 16, 16, 64, 64, is_prefill=True, is_differential=True),
]


class Timer:
    """Median microseconds of a graph of some calls."""

    def __init__(self):
        self.dirt = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda")
        self.begin, self.end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def median(self, work, repeats):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            work()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            work()
        torch.cuda.synchronize()
        time.sleep(REST_SECONDS)
        times = []
        for i in range(repeats + WARM_UP):
            self.dirt.fill_(i)
            self.begin.record()
            graph.replay()
            self.end.record()
            self.end.synchronize()
            if i >= WARM_UP:
                times.append(1000.0 * self.begin.elapsed_time(self.end))
        return statistics.median(times)


def random(batch, heads, tokens, size):
    return torch.rand(batch, heads, tokens, size, dtype=torch.bfloat16, device="cuda") * 4 - 2


def calls(row):
    """Ways to compute the row, each a list of (query, key, value, options of a call)."""
    group = row.q_heads // row.kv_heads
    query_len = row.seq_len if row.is_prefill else 1
    streams = 2 if row.is_differential else 1
    queries = [random(row.batch, row.q_heads, query_len, row.head_size) for _ in range(streams)]
    keys = [random(row.batch, row.kv_heads, row.seq_len, row.head_size) for _ in range(streams)]
    values = [random(row.batch, row.kv_heads, row.seq_len, row.head_size_v) for _ in range(streams)]
    causal = {"is_causal": row.is_prefill}
    if row.is_differential:
        wide = torch.cat(values, dim=3)
        yield [(q, k, wide, causal) for q, k in zip(queries, keys)]
        yield [(q, k, v, causal) for q, k in zip(queries, keys) for v in values]
        return
    yield [(queries[0], keys[0], values[0], {"enable_gqa": group > 1, **causal})]
    if not row.is_prefill and group > 1:  # the q_heads of a kv head as tokens: they see the same keys
        folded = queries[0].view(row.batch, row.kv_heads, group, row.head_size)
        yield [(folded, keys[0], values[0], causal)]


def best(row, backend, timer):
    """The fastest of the row's ways, None if PyTorch takes none."""
    repeats = PREFILL_REPEATS if row.is_prefill else REPEATS
    fastest = None
    for way in calls(row):

        def work(way=way):
            for query, key, value, options in way:
                scaled_dot_product_attention(query, key, value, **options)

        try:
            with sdpa_kernel(backend):
                microseconds = timer.median(work, repeats)
        except RuntimeError:
            torch.cuda.synchronize()
            continue
        fastest = microseconds if fastest is None else min(fastest, microseconds)
    return fastest


def cell(row, microseconds):
    if microseconds is None:
        return ""
    if not row.is_prefill:
        return f"{microseconds:.1f} us"
    widths = row.head_size + 2 * row.head_size_v if row.is_differential else row.head_size + row.head_size_v
    heads = 2 * row.q_heads if row.is_differential else row.q_heads
    flops = row.batch * 0.5 * row.seq_len**2 * heads * 2 * widths
    return f"{flops / microseconds * 1e-6:.0f} TFLOP/s"


def main():
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    print(f"PyTorch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}, {torch.cuda.get_device_name()}")
    print("| work | " + " | ".join(BACKENDS) + " |\n|---|" + "---:|" * len(BACKENDS))
    torch.manual_seed(1)
    timer = Timer()
    with torch.inference_mode():
        for row in ROWS:
            if wanted not in row.name:
                continue
            cells = [cell(row, best(row, backend, timer)) for backend in BACKENDS.values()]
            print(f"| {row.name} | " + " | ".join(cells) + " |", flush=True)
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
