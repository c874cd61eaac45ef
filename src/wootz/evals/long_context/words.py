"""Words to make keys, lists and sentences from, and names that nobody has."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

ADJECTIVES = (  # noqa: SIM905
    "able ancient angry bitter blank bold brave brief bright broad busy calm careful cheap clean clear clever cold "
    "common cool crisp curious damp dark dear deep dense dim distant double dry dull eager early easy elder empty "
    "equal even exact faint fair famous fast fierce final firm flat fond formal free fresh full funny gentle glad "
    "golden grand grave great green grey happy hard harsh heavy hidden high hollow honest huge humble idle inner "
    "jolly keen kind large late lazy lean light little lively local lonely long loose loud loyal lucky mad main "
    "mellow mild minor modern narrow neat new noble noisy odd old open orange outer pale patient plain polite proud "
    "pure quick quiet rapid rare raw ready red regular rich ripe rough round royal rude sad safe salty secret sharp "
    "short shy silent silver simple slow small smooth soft solid sour spare steady steep stern stiff still strange "
    "strict strong subtle sudden sweet swift tall tame tender thick thin tidy tight tiny tired tough true upper usual "
    "vague vast vivid warm weak wet white wide wild wise young"
).split()

NOUNS = (  # noqa: SIM905
    "anchor answer apple arch arrow attic axe badge bakery ball band bank barn basket bath beach bean bear bed bee "
    "bell belt bench bird blade blanket block boat body bone book boot border bottle bow bowl box branch bread brick "
    "bridge broom brush bucket button cabin cake camera camp canal candle card carpet cart castle cat cave cellar "
    "chain chair chalk chapel chart cherry chest chimney church circle clay cliff clock cloth cloud coal coat coin "
    "colour comb corner cotton cousin cow crown cup curtain dance deer desk dinner ditch dog door dream drum duck "
    "dust eagle edge egg elbow engine farm feather fence field finger fire fish flag flame floor flower flute fog "
    "forest fork fountain fox frame friend frost fruit garden gate ghost gift glass glove goat grain grape grass "
    "guest guitar hammer hand harbour hat hawk hedge hen hill hook horn horse hotel house ice ink iron island jacket "
    "jar jewel journey judge jug kettle key king kitchen kite knife knot ladder lake lamp lantern leaf leather lemon "
    "letter lid lily lion lock log loom lute maple map market mask meadow mill mirror monkey moon mountain mouse "
    "mouth nail neck needle nest net night north nut oak oar ocean oil onion orchard oven owl page paint palace palm "
    "paper parade path pear pearl pen pencil pepper piano picture pillow pin pipe pit plank plate plough plum pocket "
    "poem pond pony porch pot prince pump queen rabbit rain reed ribbon rice ring river road robe roof room root rope "
    "rose rug sail salt sand saw scale school sea seed shadow sheep shelf shell ship shirt shoe shop shore silk "
    "singer sister skin sky sleeve smoke snail snow soap song soup spade spark spoon spring square stable stage star "
    "stone storm stove straw stream street string sugar summer sun swan table tail tailor tea temple tent thread "
    "throne thumb ticket tiger timber tower town toy track train tree tunnel valley vase veil village violin voice "
    "wagon wall water wave wax well wheat wheel whistle wind window wing winter wolf wood wool yard"
).split()

_ONSETS = "b br c ch d dr f fl g gr h j k l m n p pr qu r s sh st t th tr v w y z".split()  # noqa: SIM905
_VOWELS = "a e i o u ai ea ou".split()  # noqa: SIM905
_CODAS = "l m n r s t x nd rk sk lm".split()  # noqa: SIM905


def coined(rng: Random, taken: set[str] | None = None) -> str:
    """A pronounceable word of two syllables that nobody uses; with ``taken``, one not in it, which it then joins."""
    while True:
        parts = [rng.choice(_ONSETS), rng.choice(_VOWELS), rng.choice(_ONSETS), rng.choice(_VOWELS), rng.choice(_CODAS)]
        word = "".join(parts)
        if taken is None:
            return word
        if word not in taken:
            taken.add(word)
            return word


def key_words(rng: Random) -> Iterator[str]:
    """Endless different keys such as ``gentle-harbour`` (RULER's word keys are an adjective and a noun)."""
    seen = set[str]()
    while True:
        key = f"{rng.choice(ADJECTIVES)}-{rng.choice(NOUNS)}"
        if len(seen) > len(ADJECTIVES) * len(NOUNS) // 2:
            key += f"-{coined(rng)}"
        if key not in seen:
            seen.add(key)
            yield key


def distinct_words(rng: Random) -> Iterator[str]:
    """Endless different words: the real ones in random order, then coined ones."""
    real = list(dict.fromkeys([*NOUNS, *ADJECTIVES]))
    rng.shuffle(real)
    yield from real
    taken = set(real)
    while True:
        yield coined(rng, taken)


def uuid(rng: Random) -> str:
    """A random version 4 UUID from ``rng`` (the standard library's would not repeat itself)."""
    digits = f"{rng.getrandbits(128):032x}"
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-a{digits[17:20]}-{digits[20:]}"
