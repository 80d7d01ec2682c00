"""Values of fields that several builders refuse alike."""

from jaxseg.errors import UserError


def one_of(field: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UserError(f"config.{field}={value!r}: choose one of {', '.join(allowed)}")


def two_sides(field: str, value: tuple) -> None:
    if len(value) != 2 or min(value) < 1:
        raise UserError(f"config.{field}={value}: give two positive whole numbers")
