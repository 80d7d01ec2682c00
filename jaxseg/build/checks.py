"""Values of fields that several builders refuse alike."""

from jaxseg.errors import UserError

LARGEST_SIDE = 100_000  # pixels


def one_of(field: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UserError(f"config.{field}={value!r}: choose one of {', '.join(allowed)}")


def between(field: str, value: int, least: int, most: int) -> None:
    """Far more than anybody uses would be refused, too, but after minutes of building it."""
    if not least <= value <= most:
        raise UserError(f"config.{field}={value}: give a whole number from {least} to {most}")


def two_sides(field: str, value: tuple) -> None:
    if len(value) != 2 or min(value) < 1 or max(value) > LARGEST_SIDE:
        raise UserError(
            f"config.{field}={value}: give two positive whole numbers, up to {LARGEST_SIDE}"
        )
