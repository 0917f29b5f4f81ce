"""How a row of things is dealt to several processes: without overlap, without loss."""


def share_of(count: int, rank: int, size: int) -> slice:
    """Return part `rank` of `count` things in a row split into `size` parts as even as can be, larger ones first."""
    least, more = divmod(count, size)
    start = rank * least + min(rank, more)
    return slice(start, start + least + (rank < more))
