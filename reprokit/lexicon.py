"""Words that say something of themselves: kinds of places and gear, prices, blame and praise.

All lists are ours. They are read as follows.

- Texts are compared in lower case, without accents, "&" as "and", hyphens as blanks.
- A phrase is found as whole words, within a sentence; the longest phrase at a place counts, and
  none within another. So "French fries" are not French: phrases under "" stand for nothing.
- Names of types and their phrases are also found in the regular plural; phrases of prices are not.
- A word is negated by "not", "never", "isn't" and the like up to four words before it, unless a
  punctuation mark or "and", "but", "because" ... stands between them.

A phrase may stand for several types: sushi is Japanese, and a type of its own.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from functools import cache

Phrases = Mapping[str, tuple[str, ...]]
"""By what they stand for."""


def _phrases(table: str) -> dict[str, tuple[str, ...]]:
    """{"thai": ("pad thai", "tom yum")} of lines such as "thai: pad thai, tom yum"."""
    found = {}
    for line in table.strip().replace("\n    ", " ").splitlines():
        name, _, rest = line.partition(":")
        found[name.strip()] = tuple(part.strip() for part in rest.split(",") if part.strip())
    return found


def _words(table: str) -> frozenset[str]:
    return frozenset(table.split())


# --- kinds of restaurants and of music gear -----------------------------------------------------
LEXICONS: dict[str, Phrases] = {
    "restaurants": _phrases("""
: french fries, french fry, french toast, french press, french dip, french vanilla, american cheese,
    american express, african american, native american, swiss cheese, italian dressing,
    canadian bacon, belgian waffle, shrimp cocktail, prawn cocktail, cocktail sauce, spanish rice,
    chinese new year, mexican coke, german shepherd, irish coffee, greek yogurt, bar stool,
    southern california, diners, salad bar, salad dressing, candy bar, rice cake, fish cake,
    iced tea, sweet tea
african: fufu, jollof, egusi
american: new american, all american, meatloaf, mac and cheese
argentinian: argentine, argentinean, chimichurri, parrilla
asian: pan asian
bagel: lox
bakery: bakeries, pastry, croissant, baguette, sourdough, patisserie
bar: tavern, saloon, taproom, dive bar
barbecue: bbq, barbeque, bar b q, brisket, smoked ribs, baby back ribs, spare ribs, pulled pork,
    burnt ends, smokehouse
brazilian: churrascaria, rodizio, feijoada, picanha
breakfast: omelet, omelette, hash browns, eggs benedict, breakfast burrito
brewery: brewpub, brew pub, microbrewery, craft beer
british: english pub, shepherd's pie, bangers and mash, full english
bubble tea: boba, milk tea
buffet: all you can eat
burger: hamburger, cheeseburger
cafe: coffeehouse, coffee house
cajun: creole, gumbo, jambalaya, etouffee, crawfish, beignet, po boy
caribbean: oxtail, plantain
chicken wings: hot wings, buffalo wings, boneless wings, wings
chinese: lo mein, chow mein, kung pao, general tso, general tso's, szechuan, sichuan, cantonese,
    peking duck, mapo tofu, orange chicken, wonton, egg foo young
cocktail: mixology, speakeasy, martini, negroni, mixologist
coffee: espresso, latte, cappuccino, barista, cold brew
colombian: arepa, bandeja paisa
crepe: creperie
cuban: cubano, ropa vieja
deli: delicatessen, pastrami, corned beef, reuben
dessert: cake, cheesecake, cupcake, tiramisu, brownie, truffles, pie shop
dim sum: dumpling, bao, xiao long bao
diner: greasy spoon
donut: doughnut
ethiopian: injera, doro wat
fast food: drive thru, drive through, mcdonald's, burger king, taco bell, wendy's
filipino: lumpia, adobo, lechon, pancit, sisig
fine dining: tasting menu, michelin
fish and chips: fish n chips
fondue:
food truck: food cart
french: bistro, brasserie, coq au vin, escargot, bouillabaisse, confit, ratatouille, steak frites,
    croque monsieur
fried chicken: rotisserie chicken, chicken tenders, kfc
frozen yogurt: froyo
fusion:
gastropub:
german: schnitzel, bratwurst, spaetzle, sauerbraten, biergarten, beer garden, pretzel
greek: gyro, souvlaki, spanakopita, moussaka, tzatziki
grill: bar and grill
halal:
hawaiian: kalua, loco moco, huli huli, luau
hot dog: frankfurter, corn dog
hot pot: shabu shabu, shabu
ice cream: gelato, sundae, soft serve, milkshake
indian: biryani, tikka masala, tandoori, naan, samosa, dosa, paneer, vindaloo, butter chicken,
    chana masala
indonesian: nasi goreng, rendang, satay
irish: irish pub
italian: pasta, lasagna, lasagne, risotto, ravioli, gnocchi, trattoria, spaghetti, fettuccine,
    carbonara, osteria, parmigiana, chicken parmesan
jamaican: jerk chicken, curry goat
japanese: sushi, sashimi, ramen, udon, tempura, teriyaki, izakaya, hibachi, teppanyaki, tonkatsu,
    nigiri, omakase, bento, donburi
juice: juice bar, acai, cold pressed
korean: kimchi, bibimbap, bulgogi, kbbq, korean bbq, korean barbecue, tteokbokki, galbi
kosher: jewish deli
latin american: latin
lebanese: manakish, tabbouleh
malaysian: laksa, roti canai
mediterranean:
mexican: taco, burrito, enchilada, quesadilla, taqueria, guacamole, carnitas, tamale, fajita,
    carne asada, al pastor, birria, chile relleno, mole poblano, torta, pozole
middle eastern: shawarma, falafel, hummus, kebab, kabob, baba ganoush
mongolian:
moroccan: tagine, couscous
nepalese: nepali, momo, himalayan
noodle: noodle house, noodle soup, noodle bar
pakistani: nihari
pancake: waffle, pancake house
persian: iranian, koobideh
peruvian: ceviche, lomo saltado, pollo a la brasa, pisco
pizza: pizzeria, calzone, pepperoni, deep dish, stromboli
poke: poke bowl
polish: pierogi, kielbasa
portuguese: piri piri, peri peri
pub: ale house, alehouse
ramen: tonkotsu
russian: borscht, pelmeni, stroganoff
salad: salad place, caesar salad
salvadoran: pupusa
sandwich: hoagie, panini, cheesesteak, philly cheesesteak, sub shop, club sandwich, grilled cheese
seafood: crab cake, oyster, lobster, shrimp, crab, clam chowder, crab legs, scallops, fish market
smoothie: smoothie bowl
soul food: collard greens, chicken and waffles, fried catfish, catfish, cornbread
soup: chowder, bisque
southern: biscuits and gravy, chicken fried steak, shrimp and grits, grits
spanish: paella
sports bar:
steakhouse: steak house, steak, ribeye, filet mignon, prime rib, sirloin, porterhouse, t bone
sushi: nigiri, sashimi, omakase
taiwanese: beef noodle soup, popcorn chicken
tapas: small plates, patatas bravas, croquettes
tea: tea house, tea room, high tea, afternoon tea
tex mex: queso, chips and salsa
thai: pad thai, tom yum, tom kha, green curry, red curry, massaman, drunken noodles, pad see ew,
    panang
turkish: doner, kofte, baklava, iskender
vegan: plant based
vegetarian: veggie burger, meatless
venezuelan: tequenos, cachapas
vietnamese: pho, banh mi, vermicelli bowl, bun bo hue, summer rolls
wine bar: wine list, winery, vineyard, wine tasting
""")
    | {"brunch": ("bottomless mimosas",)},  # codespell:ignore brunch
    "instruments": _phrases("""
: air guitar, guitar hero, drum roll, strap in
accordion: concertina, melodica
acoustic guitar: dreadnought, acoustic, acoustics, parlor guitar, steel string guitar
amplifier: amp, combo amp, guitar amp, bass amp, tube amp, amp head, half stack, practice amp
audio interface: usb interface, recording interface, focusrite, scarlett, preamp, sound card
audio mixer: mixer, mixing board, mixing console
banjo:
bass guitar: electric bass, my bass, a bass, on bass, bass player, precision bass, jazz bass
bass strings: flatwounds, flatwound
cable: instrument cable, patch cable, guitar cable, xlr, xlr cable, guitar cord, patch cord
capo: kyser
cello: viola, double bass, upright bass
clarinet: oboe, bassoon
classical guitar: nylon string guitar, nylon strings, nylon string
cleaner: polish, guitar polish, fretboard oil, lemon oil, polishing cloth, fret polish
drum: drum set, drum kit, snare, bass drum, kick drum, tom tom, drumhead, drum head, hi hat
drumsticks: drum stick, drumstick, drum brushes
cymbal: crash cymbal, ride cymbal, zildjian
dj equipment: turntable, dj controller, dj mixer
effects pedal: pedal, stompbox, stomp box, overdrive, distortion, fuzz, chorus pedal, delay pedal,
    reverb pedal, wah, wah pedal, looper, compressor pedal, multi effects, tremolo pedal, flanger,
    phaser
electric guitar: stratocaster, telecaster, les paul, hollow body
field recorder: digital recorder, portable recorder, zoom h4n
flute: piccolo, recorder, ocarina, tin whistle, pennywhistle
guitar case: gig bag, hardshell case, hard case, guitar bag
guitar parts: tuning machine, tuning peg, machine heads, bridge pin, nut and saddle, saddle,
    pickguard, tremolo arm, fretboard
guitar picks: guitar pick, picks, plectrum, plectra, thumb pick, finger pick, pick holder
guitar slide: glass slide, brass slide, metal slide, bottleneck
guitar stand: guitar hanger, guitar wall hanger, wall hanger, wall mount, guitar rack
guitar strap: strap, strap lock, strap button
guitar strings: elixir, acoustic strings, electric strings, string set, set of strings, ernie ball,
    phosphor bronze, light gauge, d'addario strings
harmonica: harmonica holder, blues harp
headphones: headphone, earbuds, in ear monitors, earphones
humidifier: humidity, humidipak
keyboard: piano, digital piano, weighted keys, keyboard stand
kazoo:
mandolin:
metronome:
microphone: mic, mics, condenser mic, condenser microphone, dynamic mic, ribbon mic, sm57, sm58,
    vocal mic
microphone stand: mic stand, boom stand, boom arm, mic clip, shock mount, boom mic stand
midi controller: midi, midi keyboard, pad controller
music stand: sheet music stand
pedal board: pedalboard, pedal power
percussion: tambourine, shaker, maracas, cowbell, cajon, conga, bongo, djembe, glockenspiel,
    xylophone
pickup: humbucker, single coil, soundhole pickup, piezo
pop filter: windscreen, foam windscreen
power supply: power adapter, wall wart, ac adapter, daisy chain
recording software: daw, pro tools, cubase, ableton
reeds: reed
saxophone: sax, alto sax, tenor sax
speaker: pa system, pa speaker, subwoofer, powered speaker
studio monitor: monitor speaker, studio monitors
synthesizer: synth, synths, drum machine
trumpet: trombone, cornet, bugle, french horn, mouthpiece
tuner: clip on tuner, pedal tuner, chromatic tuner, snark
ukulele: uke, ukuleles
violin: fiddle, violin bow, rosin, shoulder rest
wireless system: wireless mic, wireless microphone, wireless
"""),
}
"""By name: types, each with the phrases that stand for it beside its own name."""

# --- prices -------------------------------------------------------------------------------------
_NOUNS = ("price", "prices", "pricing")
_VERBS = ("", "is ", "are ", "was ", "were ", "seem ", "seems ", "seemed ")
_DEGREES = (
    *("", "a bit ", "a little ", "too ", "very ", "quite ", "pretty ", "really ", "so "),
    *("super ", "fairly ", "rather ", "slightly ", "somewhat ", "relatively "),
)


def _said(adjectives: str) -> tuple[str, ...]:
    """ "fair price", "prices fair", "price was very fair" and so on."""
    words = [word.strip() for word in adjectives.split(",")]
    before = [f"{word} {noun}" for word in words for noun in (*_NOUNS, "priced", "price point")]
    after = [
        f"{noun} {verb}{degree}{word}"
        for word in words
        for noun in _NOUNS
        for verb in _VERBS
        for degree in _DEGREES
    ]
    return (*before, *after)


_PRICED = _phrases("""
: cheap plastic, cheap material, cheap materials, cheap quality, cheap looking, cheap feeling,
    cheap feel, looks cheap, look cheap, looked cheap, feels cheap, feel cheap, felt cheap,
    sounds cheap, cheap shot, reasonable time, reasonable wait, reasonable amount, expensive taste
cheap: cheaper, cheapest, cheaply, inexpensive, bargain, bargains, affordable, affordably, low cost,
    budget friendly, a steal, good value, great value, excellent value, amazing value, best value,
    good deal, great deal, amazing deal, economical, easy on the wallet, value for money,
    value for the money, bang for your buck, bang for the buck, won't break the bank,
    doesn't break the bank, not break the bank
fair: fairly priced, reasonable, reasonably priced, priced about right, priced right,
    priced just right, priced well, well priced, correctly priced, decently priced,
    moderately priced, right price, worth the price, worth the money, worth every penny,
    worth what you pay, worth the cost, get what you pay for, fair value
overpriced: over priced, too expensive, expensive, pricey, pricy, too pricey, rip off, rip offs,
    ripoff, ripped off, costly, exorbitant, unreasonable, unreasonably priced, unfair price,
    unfair prices, outrageously priced, price gouging, overcharge, overcharged, overcharging,
    too much money, too much for what you get, costs too much, cost too much, waste of money,
    more than it's worth, bit steep, little steep, high dollar, poor value, bad value,
    break the bank, priced too high
""")
PRICE_PHRASES: Phrases = {
    "": _PRICED[""],
    "cheap": ("cheap", *_PRICED["cheap"], *_said("low, good, great, excellent, unbeatable")),
    "fair": (*_PRICED["fair"], *_said("fair, reasonable, decent, about right")),
    "overpriced": (
        *("overpriced", *_PRICED["overpriced"]),
        *_said("high, steep, outrageous, ridiculous, crazy, insane, absurd"),
    ),
}
"""What is said of a price. A cheap look is no price."""
NEGATED_PRICE = {"overpriced": "fair", "fair": "overpriced", "cheap": ""}
"""What is said under a negation: "isn't expensive" is fair, "not worth the price" overpriced; "not
cheap" says nothing, for it may be fair."""

_ANSWERED = _phrases("""
: low quality, high quality, fair amount, fair bit, fair share
cheap: low
fair: fair, moderate
overpriced: over rice, over price, overprice, high
none: unclear, unknown, undetermined, n a, not clear, no clear, no indication, no information,
    no mention, no price, not applicable, not enough information, insufficient information,
    not possible, cannot determine, can't determine, cannot be determined, can't be determined,
    cannot tell, can't tell, not mentioned, not specified, not stated, not indicated, not provided,
    not discussed, not mention, not indicate, not specify, not provide, not discuss, don't mention,
    doesn't mention
""")
ANSWER_PHRASES: Phrases = {
    **{name: (*PRICE_PHRASES[name], *_ANSWERED[name]) for name in PRICE_PHRASES},
    "none": ("none", *_ANSWERED["none"]),
}
"""What a language model answers when it is asked for the price; "over-rice" stands in the paper's
prompt."""

# --- blame, praise, and words without content ---------------------------------------------------
_SHORTENED = (
    "can't don't didn't doesn't isn't wasn't aren't weren't won't wouldn't couldn't shouldn't"
)
NEGATORS = _words(
    "not no never nothing nobody none neither nor hardly barely scarcely without cannot"
)
NEGATORS |= _words(_SHORTENED.replace("'", ""))  # as they are often written
"""Beside all that ends with "n't"."""
NOT_NEGATING = _words("wait beat only just")
""" "can't wait", "can't beat", "not only", "not just"."""
CLAUSE_ENDS = _words("and but because so although though yet while however except")

CRITICAL = _words("""
    annoyed annoying appalling arrogant avoid awful bad badly bland bored boring broke
    broken bugs burned burnt cheaply chewy cold complain complained complaint complaints crappy
    cockroach cracked cramped defective dirty disappoint disappointed disappointing disappointment
    disgusted disgusting dislike disliked dismissive dreadful dry dull error expensive fail failed
    fails failure fault faulty filthy flavorless flimsy forgot forgotten frustrated frustrating
    gross greasy hate hated horrendous horrible ignored inconsistent incorrect inedible
    insulting issue issues junk lack lacked lacking lacks limp lousy mediocre mess messy
    missing mistake mistakes moldy nasty noisy overcharged overcooked overpriced pathetic poor
    poorly pricey problem problems refund refused regret ridiculous ripoff roach roaches rotten
    rubbery rude rudely ruined rushed sad salty shame sick slow sloppy smelled smelly soggy
    spoiled stale stiff subpar tasteless tedious terrible tough unacceptable
    uncomfortable undercooked underwhelmed underwhelming unfortunately unfriendly unhappy
    unimpressed unpleasant unprofessional unsanitary unusable upset useless waited waste wasted
    watery weak worse worst wrong yelled yuck
    """)
"""Words that blame."""
PRAISE = _words("""
    accommodating again amazing attentive authentic awesome back beautiful best better clean
    comfortable delicious easy enjoy enjoyable enjoyed enough excellent fan fantastic flavorful
    fresh friendly fun good great happy helpful hot impressed like liked love loved nice perfect
    pleasant pleased polite professional quality quick recommend recommended reliable responsive
    return satisfied special sturdy tasty warm welcoming wonderful work worked works worth
    """)
"""Words that blame when they are negated."""
STOPWORDS = _words("""
    a about above after again all almost also although always am an and another any anyone anything
    are around as at away be became because been before being both but by came can come could did
    do does doing done down each either else etc even ever every everyone everything few for from
    get gets getting give go goes going gone got had has have having he her here hers herself him
    himself his how however i if in into is it its itself just know let like made make makes many
    may maybe me might mine more most much must my myself of off often ok okay on once one only or
    other others our ours out over own put quite rather really said same saw say see she should
    since so some someone something still such sure take than that the their theirs them themselves
    then there these they thing things this those though through thus to too took two under until
    up upon us use used very via want was way we well went were what when where whether which
    while who whom whose why will with within would yet you your yours yourself
    i'm i've i'd i'll you're you've you'll you'd he's he'd she's she'd it's it'd it'll we're we've
    we'd we'll they're they've they'd they'll that's there's here's what's who's let's
    """) | (NEGATORS - {"nothing"})
"""Words without content; so are all that end with "n't", single letters and plain numbers."""


# --- reading ------------------------------------------------------------------------------------
WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*|[.,!?;:()\n\u3002]")
REACH = 4
"""Words that a negation reaches."""
LONGEST = 40
"""Words of a sentence; a longer one is cut into pieces."""
ABBREVIATIONS = frozenset(
    ["mr", "mrs", "ms", "dr", "st", "vs", "approx", "e.g", "i.e", "a.m", "p.m", "jr", "inc"]
)
MARKS = re.compile(r"\((?:Translated by Google|Original)\)")
END = re.compile(r"[.!?\u2026]+[\"'\u201d\u2019)\]]*|[\u3002\uff01\uff1f]+|[\r\n]+")


def fold(text: str) -> str:
    """A text in lower case, without accents, with plain apostrophes, and with "and" for "&"."""
    text = text.replace("&", " and ")
    if not text.isascii():
        text = text.replace("\u2019", "'").replace("\u02bc", "'")
        parts = unicodedata.normalize("NFKD", text.casefold())
        text = "".join(part for part in parts if not unicodedata.combining(part))
    return text.lower()


def tokens(text: str) -> list[str]:
    """Words of a text, folded, and the marks that end a clause."""
    return WORD.findall(fold(text))


def split_sentences(text: str) -> list[str]:
    """Sentences of a text, at least one; pieces of 40 words of a longer one.

    A sentence ends at a line's end and at any row of "!", "?" and full stops, whether a blank
    follows or not. A single full stop must be followed by a blank, or by a capital behind a small
    letter or a digit ("good.The"), and not stand behind an abbreviation or an initial. Google's
    marks of a translation are removed.
    """
    whole, text = text, MARKS.sub("\n", text)
    pieces, start = [], 0
    for found in END.finditer(text):
        if found[0][0] != "." or ends_sentence(text, found.start(), found.end()):
            pieces.append(text[start : found.end()])
            start = found.end()
    pieces.append(text[start:])
    parts = [
        " ".join(words[at : at + LONGEST])
        for words in map(str.split, pieces)
        for at in range(0, len(words), LONGEST)
    ]
    spoken = [part for part in parts if any(map(str.isalnum, part))]
    return spoken or [" ".join(whole.split()[:LONGEST])]


def ends_sentence(text: str, start: int, end: int) -> bool:
    """Whether the full stops at text[start:end] end a sentence."""
    after, before = text[end : end + 1], text[max(start - 8, 0) : start]
    if end - start > 1 and text[start + 1] == ".":
        return True
    word = before.split()[-1].lstrip("(\"'") if before.split() else ""
    if word.lower() in ABBREVIATIONS or (len(word) == 1 and word.isupper()):
        return False
    if not after or after.isspace():
        return True
    return after.isupper() and (before[-1:].islower() or before[-1:].isdigit())


def is_negated(words: Sequence[str], at: int) -> bool:
    """Whether a negation stands before the word at a place, within its reach."""
    for before in range(at - 1, max(at - REACH, 0) - 1, -1):
        word = words[before]
        if word in CLAUSE_ENDS or not word[0].isalnum():
            return False
        if (word in NEGATORS or word.endswith("n't")) and words[before + 1] not in NOT_NEGATING:
            return True
    return False


def blaming(words: Sequence[str]) -> set[str]:
    """The words of a sentence that blame: critical ones, and negated praise."""
    return {
        word
        for at, word in enumerate(words)
        if (word in CRITICAL or word in PRAISE) and (word in CRITICAL) != is_negated(words, at)
    }


def has_content(word: str) -> bool:
    plain = len(word) < 2 or word in STOPWORDS or word.endswith("n't") or word.isdigit()
    return not plain


def plural(word: str) -> str:
    """The regular plural; a word that ends with s is one."""
    if word.endswith("s"):
        return word
    if re.search(r"[^aeiou]y$", word):
        return f"{word[:-1]}ies"
    return f"{word}es" if re.search(r"(?:x|z|ch|sh)$", word) else f"{word}s"


class Finder:
    """Finds the phrases of a lexicon in the words of a text.

    Args:
        phrases: by what they stand for.
        plurals: whether their regular plurals are found too.
    """

    def __init__(self, phrases: Phrases, plurals: bool = False) -> None:
        table: dict[tuple[str, ...], list[str]] = {}
        for name, listed in phrases.items():
            for phrase in listed:
                names = table.setdefault(tuple(tokens(phrase)), [])
                names += [name] if name not in names else []
        if plurals:
            for words, names in list(table.items()):
                table.setdefault((*words[:-1], plural(words[-1])), names)
        self.table = {words: () if "" in names else tuple(names) for words, names in table.items()}
        self.lengths: dict[str, list[int]] = {}
        """By first word: how long its phrases are, the longest first."""
        for words in sorted(table, key=lambda words: (-len(words), words)):
            lengths = self.lengths.setdefault(words[0], [])
            lengths += [len(words)] if len(words) not in lengths else []

    def find(self, words: Sequence[str]) -> Iterator[tuple[int, str]]:
        """(place, what stands there), from the left."""
        at = 0
        while at < len(words):
            for length in self.lengths.get(words[at], ()):
                names = self.table.get(tuple(words[at : at + length]))
                if names is not None:
                    yield from ((at, name) for name in names)
                    at += length - 1
                    break
            at += 1


@cache
def type_finder(lexicon: str) -> Finder:
    """Of the types of a lexicon, under their own names and their phrases."""
    if lexicon not in LEXICONS:
        raise ValueError(f"lexicon must be one of {', '.join(LEXICONS)}; got '{lexicon}'")
    table = LEXICONS[lexicon]
    return Finder({name: (name, *also) if name else also for name, also in table.items()}, True)


@cache
def price_finder() -> Finder:
    return Finder(PRICE_PHRASES)


@cache
def answer_finder() -> Finder:
    return Finder(ANSWER_PHRASES)


def types_in(text: str, lexicon: str) -> set[str]:
    """The types that a text mentions, whatever it says of them."""
    return {name for _, name in type_finder(lexicon).find(tokens(text))}


def prices_in(text: str) -> list[str]:
    """What a text says of prices, "cheap", "fair" or "overpriced", once for each mention."""
    words = tokens(text)
    found = (
        NEGATED_PRICE[name] if is_negated(words, at) else name
        for at, name in price_finder().find(words)
    )
    return [name for name in found if name]


def price_answer(text: str) -> set[str]:
    """The tags that an answer names, "none" among them; what it negates is not named."""
    words = tokens(text)
    return {name for at, name in answer_finder().find(words) if not is_negated(words, at)}
