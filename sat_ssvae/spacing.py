"""A selection of many items, evenly spread, because neighbours are alike."""


def evenly_spaced(total: int, wanted: int) -> list[int]:
    """Indices of at most `wanted` of `total`, evenly spaced from first to last; of one, the middle."""
    if wanted >= total:
        return list(range(total))
    if wanted == 1:
        return [total // 2]
    return [round(i * (total - 1) / (wanted - 1)) for i in range(wanted)]
