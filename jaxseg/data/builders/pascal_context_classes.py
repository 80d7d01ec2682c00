"""The 59 classes of Pascal-Context: mask value k + 1 is ``NAMES[k]``, in alphabetical order.

The order follows the ids (2 aeroplane, 9 bag, ... 458 wood) of the 459 original labels. The lists
that put the 20 VOC classes first belong to other masks; see docs/datasets.md.
"""

_NAMES = """
aeroplane, bag, bed, bedclothes, bench, bicycle, bird, boat, book, bottle, building, bus, cabinet,
car, cat, ceiling, chair, cloth, computer, cow, cup, curtain, dog, door, fence, floor, flower, food,
grass, ground, horse, keyboard, light, motorbike, mountain, mouse, person, plate, platform,
pottedplant, road, rock, sheep, shelves, sidewalk, sign, sky, snow, sofa, table, track, train, tree,
truck, tvmonitor, wall, water, window, wood
"""

NAMES = tuple(name.strip() for name in _NAMES.split(","))
