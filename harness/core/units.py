"""Numbers for people."""

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
