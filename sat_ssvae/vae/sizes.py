"""Which sizes of a video a causal autoencoder takes, and the size of its latents."""

from ..errors import UserError


def latent_size(size: tuple[int, int, int], time: int, space: int, name: str) -> tuple[int, int, int]:
    """Latent (t, h, w) of a video of (T, H, W) = `size`: T = `time` k + 1, H and W multiples of `space`.

    Raises:
        UserError: the size does not fit the autoencoder `name`; the message has the nearest sizes that do.
    """
    num_frames, height, width = size
    if num_frames < 1 or (num_frames - 1) % time:
        below = max(num_frames - 1, 0) // time * time + 1
        raise UserError(f"{num_frames} frames: {name} takes {time}k + 1; the nearest are {below} and {below + time}")
    for side, pixels in (("height", height), ("width", width)):
        if pixels < space or pixels % space:
            options = sorted({max(steps, 1) * space for steps in (pixels // space, -(-pixels // space))})
            nearest = " and ".join(map(str, options))
            raise UserError(f"{side} {pixels}: {name} takes multiples of {space}; the nearest: {nearest}")
    return (num_frames - 1) // time + 1, height // space, width // space
