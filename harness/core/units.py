"""Numbers for people."""

# What may stand behind a number, by metric, and what it multiplies the number by; none is the metric's own unit.
COUNTS = {"k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_BYTES = {"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30}
UNITS: dict[str, dict[str, float]] = {
    "psnr_db": {"dB": 1.0},
    "ssim": {},
    "latency_ms": {"us": 1e-3, "µs": 1e-3, "ms": 1.0, "s": 1e3},
    "latency_ratio": {"%": 1e-2},
    "macs": COUNTS,
    "params": COUNTS,
    "peak_memory_bytes": _BYTES,
    "attention_share": {"%": 1e-2},
}

_PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def format_count(count: float, digits: int = 2) -> str:
    """Write a count with its SI prefix: 62_710_000_000 → '62.71 G'."""
    for factor, prefix in _PREFIXES:
        if abs(count) >= factor:
            return f"{count / factor:.{digits}f} {prefix}"
    return f"{count:.{0 if float(count).is_integer() else digits}f}"


def format_seconds(seconds: float) -> str:
    """Write a duration: 75 → '1 min 15 s'."""
    if seconds < 59.95:  # which is written as 60.0
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
