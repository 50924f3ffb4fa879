"""Who can be in the creatures world: which file draws a subject, what it is called, how long it is, and what it can do.

What a subject can do comes from the names of its file's animations: "Armature|Rat_Walk" is a walk.
"""

import re
from dataclasses import dataclass

# Folder and kind, then files: greatest extent in metres (0.5), words (the file's name). The first word is the name, the others
# are as true of what is seen. A plant's name is followed by the numbers of its files.
_TABLE = """
animals_pack beast: Alpaca 1.8; Bull 2.6; Cow 2.5; Deer 1.9 deer, doe; Donkey 1.9; Fox 1.2 fox, red fox;
    Horse 2.4 horse, brown horse; Horse_White 2.4 white horse, horse; Husky 1.1 husky, dog, husky dog;
    ShibaInu 1.0 shiba inu, dog, brown dog; Stag 2.3 stag, deer with antlers; Wolf 1.5 wolf, gray wolf
cute_fish_pack fish: Anglerfish 0.6 anglerfish, deep-sea fish; ArmoredCatfish armored catfish, catfish;
    Betta betta, betta fish; BlackLionFish 0.6 black lionfish; Blobfish; BlueGoldfish; BlueTang blue tang, blue fish;
    ButterflyFish butterflyfish; CardinalFish cardinalfish; Clownfish clownfish, orange and white fish;
    CoralGrouper 0.6 coral grouper, grouper; Cowfish; Flatfish; FlowerHorn flowerhorn, flowerhorn fish; GoblinShark 1.2;
    Goldfish; Humphead 0.7 humphead, humphead wrasse; Koi 0.6 koi, koi fish; Lionfish 0.6; MandarinFish mandarinfish;
    MoorishIdol; ParrotFish parrotfish; Piranha; Puffer pufferfish, puffer; RedSnapper 0.6 red snapper, snapper;
    RoyalGramma 0.4; Shark 1.2 small shark, cartoon shark; Sunfish 1.2; Swordfish 1.4; Tang; Tetra 0.4; Tuna 0.9; Turbot;
    YellowTang yellow tang, yellow fish; ZebraClownFish zebra clownfish, black and white fish
fish_pack fish: Dolphin 2.2; Fish1 pink fish, fish; Fish2 blue fish, fish; Fish3 clownfish, orange fish;
    Manta_ray 2.4 manta ray, ray; Shark 3; Whale 8
cyberpunk_pack robot: Enemy_2Legs 1.6 two-legged robot, round robot, robot; Enemy_Large 2.2 big robot, robot
dinosaurs_pack beast: Apatosaurus 14 apatosaurus, long-necked dinosaur, dinosaur; Parasaurolophus 8 parasaurolophus, dinosaur;
    Stegosaurus 8 stegosaurus, dinosaur with plates; Trex 11 tyrannosaurus, t-rex, tyrannosaurus rex;
    Triceratops 8 triceratops, horned dinosaur; Velociraptor 3 velociraptor, raptor
easy_enemies_pack beast: Frog 0.4 frog, green frog; Rat; Snake 0.8; Snake_angry 0.8 angry snake, snake; Spider
kaykit_adventurers person: Knight 1.9; Mage 2.0 mage, wizard; Barbarian 1.9 barbarian, viking; Rogue 1.8 rogue, thief
mech_pack robot: Leela 3.5 white mech, mech, robot; Stan 3.5 green mech, green robot, battle robot
platformer_game_pack beast: Character 1.2 blue bunny, blue rabbit, bunny; Crab 0.6;
    Enemy 0.8 green monster, horned monster, monster; Skull 0.7
easy_enemies_pack flyer: Wasp 0.4
platformer_game_pack flyer: Bee
cyberpunk_pack flyer: Enemy_Flying 1.4 flying robot, drone
single_knight_pack person: KnightCharacter 1.8 man, man in gray, person
tank_pack vehicle: Tank 6
nature_pack plant: BirchTree_1235 6 birch tree, tree; BirchTree_Autumn_1235 6 autumn birch, autumn tree;
    BirchTree_Dead_12345 6 bare birch, bare tree; BirchTree_Dead_Snow_12345 6 bare birch, bare tree;
    BirchTree_Snow_1235 6 snowy birch, snowy tree; CommonTree_345 7 tree, green tree; CommonTree_Autumn_345 7 autumn tree;
    CommonTree_Dead_345 7 bare tree, dead tree; CommonTree_Dead_Snow_345 7 bare tree, dead tree;
    CommonTree_Snow_345 7 snowy tree; BushBerries_12 1.4 bush with berries, bush; Bush_12 1.2 bush, green bush;
    Bush_Snow_12 1.2 snowy bush; CactusFlower_1 1.2 agave, succulent; CactusFlowers_2345 2 flowering cactus, cactus;
    Cactus_12345 2 cactus, green cactus; Corn_12 2 corn plant
nature_pack cover: Flowers 0.6; Grass tuft of grass; Grass_2 tuft of grass; Grass_Short 0.4 tuft of grass;
    Lilypad 0.7 lily pads
"""


@dataclass(frozen=True)
class Subject:
    """One file. Plants of one name are one subject with several files."""

    file: str  # folder/name, without ".glb"
    metres: float  # greatest extent
    words: tuple[str, ...]
    kind: str  # beast, person, robot, fish, flyer, vehicle, plant, cover (plants too low to be the subject)

    @property
    def name(self) -> str:
        return self.words[0]


@dataclass(frozen=True)
class Action:
    """Something to do, and which animations show it."""

    pattern: str  # what the animation's name ends with
    pace: float = 0.0  # 0: stays in place, 1: as fast as its feet, negative: that many body lengths per second
    once: bool = False  # holds its last pose instead of beginning again


ACTIONS = {
    "stand": Action("Idle|Idle_2"),
    "walk": Action("Walk|Walking|Walking_A", 1.0),
    "run": Action("Gallop|Run|Running_A", 1.0),
    "drive": Action("Tank_Forward", -0.3),
    "swim": Action("Swim|Swim.001|Swimming_Normal", -0.55),
    "dart": Action("Swimming_Fast", -1.3),
    "fly": Action("Flying", -0.8),
    "float": Action("Swim|Swim.001|Swimming_Normal|Flying"),
    "leap": Action("Gallop_Jump", -1.6),
    "jump": Action("(?<!Gallop_)Jump|Jump_toIdle|Jump_ToIdle|Jump_Full_Short"),
    "eat": Action("Eating"),
    "attack": Action("(?<!Block_)(?<!sword)Attack|Bite_Front"),
    "butt": Action("Attack_Headbutt"),
    "kick": Action("Attack_Kick|Kick"),
    "punch": Action("(?<!_)Punch"),
    "slash": Action("SwordSlash|1H_Melee_Attack_Slice_Diagonal"),
    "cast": Action("Spellcast_Long"),
    "spin": Action("2H_Melee_Attack_Spinning"),
    "fall": Action("Death|Dead|Death_A", once=True),
    "flop": Action("Out_Of_Water"),
    "dance": Action("Dance"),
    "wave": Action("Wave|Hello"),
    "cheer": Action("Cheer"),
    "nod": Action("Yes"),
    "shake": Action("No"),
    "roll": Action("Roll", -1.0),
    "duck": Action("Duck"),
    "sit": Action("Sit_Floor_Down", once=True),
    "lie": Action("Lie_Down", once=True),
    "bow": Action("Pickup|PickUp"),
}
# Those that walk or run without feet, in body lengths per second.
GLIDING = {"snake": 0.35, "angry snake": 0.35, "flying robot": 0.7}
_PATTERNS = {action: re.compile(rf"(?:.*\|(?:[A-Za-z]+_)?)?(?:{rule.pattern})") for action, rule in ACTIONS.items()}


def actions(animation: str) -> tuple[str, ...]:
    """What an animation of this name shows."""
    return tuple(action for action, pattern in _PATTERNS.items() if pattern.fullmatch(animation))


_HIDDEN = re.compile("Offhand|Badge|Rectangle|Spike|2H_(Sword|Axe|Crossbow)|Mug|Spellbook|1H_(Wand|Crossbow)|Throwable")


def is_hidden(node: str) -> bool:
    """Whether a part of a model is left out: some files hold every weapon at once."""
    return bool(_HIDDEN.match(node))


def _subjects() -> dict[str, Subject]:
    found = {}
    for line in re.split(r"\n(?=\S)", _TABLE.strip()):
        head, entries = line.split(": ")
        folder, kind = head.split()
        for first, *rest in map(str.split, entries.split(";")):
            metres = float(rest.pop(0)) if rest and rest[0][0].isdigit() else 0.5
            words = " ".join(rest) or re.sub("(?<=[a-z])(?=[A-Z])", " ", first).replace("_", " ").lower()
            stem, _, numbers = first.rpartition("_") if kind == "plant" else (first, "", "")
            for file in [f"{folder}/{stem}_{number}" for number in numbers] or [f"{folder}/{first}"]:
                found[file] = Subject(file, metres, tuple(words.split(", ")), kind)
    return found


SUBJECTS = _subjects()
