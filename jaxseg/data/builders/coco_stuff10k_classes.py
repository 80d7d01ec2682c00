"""The 171 classes of COCO-Stuff-10K v1.1: 80 things in COCO's order, then 91 stuff classes.

Labels in the archive are 0 = unlabeled, 1..91 things, 92..182 stuff. Eleven of the thing ids were
never annotated in COCO (12 street sign, 26 hat, 29 shoe, 30 eye glasses, 45 plate, 66 mirror,
68 window, 69 desk, 71 door, 83 blender, 91 hair brush) and are no class.
"""

_THINGS = """
person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant,
stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe,
backpack, umbrella, handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite,
baseball bat, baseball glove, skateboard, surfboard, tennis racket, bottle, wine glass, cup, fork,
knife, spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake,
chair, couch, potted plant, bed, dining table, toilet, tv, laptop, mouse, remote, keyboard,
cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase, scissors, teddy bear,
hair drier, toothbrush
"""

_STUFF = """
banner, blanket, branch, bridge, building-other, bush, cabinet, cage, cardboard, carpet,
ceiling-other, ceiling-tile, cloth, clothes, clouds, counter, cupboard, curtain, desk-stuff, dirt,
door-stuff, fence, floor-marble, floor-other, floor-stone, floor-tile, floor-wood, flower, fog,
food-other, fruit, furniture-other, grass, gravel, ground-other, hill, house, leaves, light, mat,
metal, mirror-stuff, moss, mountain, mud, napkin, net, paper, pavement, pillow, plant-other,
plastic, platform, playingfield, railing, railroad, river, road, rock, roof, rug, salad, sand, sea,
shelf, sky-other, skyscraper, snow, solid-other, stairs, stone, straw, structural-other, table,
tent, textile-other, towel, tree, vegetable, wall-brick, wall-concrete, wall-other, wall-panel,
wall-stone, wall-tile, wall-wood, water-other, waterdrops, window-blind, window-other, wood
"""

_NEVER_ANNOTATED = frozenset({12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91})

NAMES = tuple(name.strip() for name in f"{_THINGS},{_STUFF}".split(","))
LABEL_IDS = tuple(i for i in range(1, 183) if i not in _NEVER_ANNOTATED)
