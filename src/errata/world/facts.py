"""Well-known facts about the real world: the readable part of the built-in world.

Every table is a block of text, one row per line, columns separated by ``|``. Real entities carry
only the true facts listed here; everything else in the world is invented, so that no invented
statement is ever made about a real person or place.
"""

from __future__ import annotations

_COUNTRIES = """
France|French Republic|Paris|euro|French
Germany|Deutschland|Berlin|euro|German
Italy|Italia|Rome|euro|Italian
Spain|Espana|Madrid|euro|Spanish
Portugal|Lusitania|Lisbon|euro|Portuguese
Austria|Osterreich|Vienna|euro|German
Ireland|Eire|Dublin|euro|Irish
Greece|Hellas|Athens|euro|Greek
Finland|Suomi|Helsinki|euro|Finnish
Estonia|Eesti|Tallinn|euro|Estonian
Latvia|Latvija|Riga|euro|Latvian
Lithuania|Lietuva|Vilnius|euro|Lithuanian
Slovenia|Slovenija|Ljubljana|euro|Slovene
Poland|Polska|Warsaw|zloty|Polish
Hungary|Magyarorszag|Budapest|forint|Hungarian
Romania||Bucharest|leu|Romanian
Bulgaria||Sofia|lev|Bulgarian
Ukraine||Kyiv|hryvnia|Ukrainian
Russia|Russian Federation|Moscow|ruble|Russian
Norway|Norge|Oslo|krone|Norwegian
Denmark|Danmark|Copenhagen|krone|Danish
Sweden|Sverige|Stockholm|krona|Swedish
Iceland|Island Republic|Reykjavik|krona|Icelandic
Switzerland|Helvetia|Bern|franc|German
Albania|Shqiperia|Tirana|lek|Albanian
Serbia|Srbija|Belgrade|dinar|Serbian
Croatia|Hrvatska|Zagreb|euro|Croatian
Turkey|Turkiye|Ankara|lira|Turkish
Georgia|Sakartvelo|Tbilisi|lari|Georgian
Armenia|Hayastan|Yerevan|dram|Armenian
Azerbaijan||Baku|manat|Azerbaijani
Egypt|Misr|Cairo|pound|Arabic
Morocco|Maghreb Kingdom|Rabat|dirham|Arabic
Algeria||Algiers|dinar|Arabic
Tunisia||Tunis|dinar|Arabic
Iraq||Baghdad|dinar|Arabic
Jordan|Hashemite Kingdom|Amman|dinar|Arabic
Iran|Persia|Tehran|rial|Persian
Israel||Jerusalem|shekel|Hebrew
Ethiopia|Abyssinia|Addis Ababa|birr|Amharic
Kenya||Nairobi|shilling|Swahili
Ghana|Gold Coast|Accra|cedi|English
Nigeria||Abuja|naira|English
Zambia||Lusaka|kwacha|English
Angola||Luanda|kwanza|Portuguese
Mozambique||Maputo|metical|Portuguese
Madagascar||Antananarivo|ariary|Malagasy
Senegal||Dakar|franc|French
India|Bharat|Delhi|rupee|Hindi
Pakistan||Islamabad|rupee|Urdu
Nepal||Kathmandu|rupee|Nepali
Bangladesh||Dhaka|taka|Bengali
China|Zhongguo|Beijing|yuan|Mandarin
Japan|Nippon|Tokyo|yen|Japanese
Mongolia||Ulaanbaatar|tugrik|Mongolian
Thailand|Siam|Bangkok|baht|Thai
Vietnam||Hanoi|dong|Vietnamese
Cambodia|Kampuchea|Phnom Penh|riel|Khmer
Laos||Vientiane|kip|Lao
Myanmar|Burma|Naypyidaw|kyat|Burmese
Malaysia||Kuala Lumpur|ringgit|Malay
Indonesia||Jakarta|rupiah|Indonesian
Philippines||Manila|peso|Filipino
Australia|Down Under|Canberra|dollar|English
Canada||Ottawa|dollar|English
Mexico||Mexico City|peso|Spanish
Cuba||Havana|peso|Spanish
Brazil|Brasil|Brasilia|real|Portuguese
Argentina||Buenos Aires|peso|Spanish
Chile||Santiago|peso|Spanish
Peru||Lima|sol|Spanish
Colombia||Bogota|peso|Spanish
Venezuela||Caracas|bolivar|Spanish
Paraguay||Asuncion|guarani|Spanish
Guatemala||Guatemala City|quetzal|Spanish
Honduras||Tegucigalpa|lempira|Spanish
"""

_ELEMENTS = """
hydrogen H helium He lithium Li beryllium Be boron B carbon C nitrogen N oxygen O fluorine F neon Ne
sodium Na magnesium Mg aluminium Al silicon Si phosphorus P sulfur S chlorine Cl argon Ar
potassium K calcium Ca scandium Sc titanium Ti vanadium V chromium Cr manganese Mn iron Fe cobalt Co
nickel Ni copper Cu zinc Zn gallium Ga germanium Ge arsenic As selenium Se bromine Br krypton Kr
rubidium Rb strontium Sr yttrium Y zirconium Zr niobium Nb molybdenum Mo technetium Tc ruthenium Ru
rhodium Rh palladium Pd silver Ag cadmium Cd indium In tin Sn antimony Sb tellurium Te iodine I
xenon Xe caesium Cs barium Ba lanthanum La cerium Ce praseodymium Pr neodymium Nd promethium Pm
samarium Sm europium Eu gadolinium Gd terbium Tb dysprosium Dy holmium Ho erbium Er thulium Tm
ytterbium Yb lutetium Lu hafnium Hf tantalum Ta tungsten W rhenium Re osmium Os iridium Ir
platinum Pt gold Au mercury Hg thallium Tl lead Pb bismuth Bi polonium Po astatine At radon Rn
"""

_BOOKS = """
War and Peace|Leo Tolstoy
Anna Karenina|Leo Tolstoy
Crime and Punishment|Fyodor Dostoevsky
The Idiot|Fyodor Dostoevsky
Pride and Prejudice|Jane Austen
Emma|Jane Austen
Persuasion|Jane Austen
Oliver Twist|Charles Dickens
Great Expectations|Charles Dickens
Hamlet|William Shakespeare
Macbeth|William Shakespeare
Othello|William Shakespeare
Ulysses|James Joyce
Dubliners|James Joyce
The Trial|Franz Kafka
The Castle|Franz Kafka
Don Quixote|Miguel de Cervantes
Faust|Johann von Goethe
The Divine Comedy|Dante Alighieri
Frankenstein|Mary Shelley
Dracula|Bram Stoker
Moby Dick|Herman Melville
Walden|Henry Thoreau
Les Miserables|Victor Hugo
Madame Bovary|Gustave Flaubert
Germinal|Emile Zola
Candide|Voltaire
The Stranger|Albert Camus
The Plague|Albert Camus
Jane Eyre|Charlotte Bronte
Wuthering Heights|Emily Bronte
Middlemarch|George Eliot
Animal Farm|George Orwell
Homage to Catalonia|George Orwell
Brave New World|Aldous Huxley
Orlando|Virginia Woolf
The Waves|Virginia Woolf
Dead Souls|Nikolai Gogol
The Seagull|Anton Chekhov
Siddhartha|Hermann Hesse
Steppenwolf|Hermann Hesse
The Magic Mountain|Thomas Mann
A Doll's House|Henrik Ibsen
Peer Gynt|Henrik Ibsen
Hunger|Knut Hamsun
Treasure Island|Robert Louis Stevenson
Kim|Rudyard Kipling
Dune|Frank Herbert
Foundation|Isaac Asimov
Solaris|Stanislaw Lem
The Leopard|Giuseppe di Lampedusa
The Odyssey|Homer
The Aeneid|Virgil
"""

_PAINTINGS = """
Mona Lisa|Leonardo da Vinci
The Last Supper|Leonardo da Vinci
The Starry Night|Vincent van Gogh
Guernica|Pablo Picasso
The Scream|Edvard Munch
The Night Watch|Rembrandt van Rijn
Girl with a Pearl Earring|Johannes Vermeer
The Milkmaid|Johannes Vermeer
The Birth of Venus|Sandro Botticelli
Primavera|Sandro Botticelli
The Kiss|Gustav Klimt
Water Lilies|Claude Monet
Impression Sunrise|Claude Monet
Olympia|Edouard Manet
The Persistence of Memory|Salvador Dali
Las Meninas|Diego Velazquez
Saturn Devouring His Son|Francisco Goya
The Raft of the Medusa|Theodore Gericault
American Gothic|Grant Wood
Nighthawks|Edward Hopper
The Garden of Earthly Delights|Hieronymus Bosch
The Hay Wain|John Constable
The Fighting Temeraire|William Turner
The Sleeping Gypsy|Henri Rousseau
"""

_COMPOSITIONS = """
The Four Seasons|Antonio Vivaldi
Messiah|George Handel
The Magic Flute|Wolfgang Mozart
Don Giovanni|Wolfgang Mozart
Fidelio|Ludwig van Beethoven
The Trout Quintet|Franz Schubert
Swan Lake|Pyotr Tchaikovsky
The Nutcracker|Pyotr Tchaikovsky
The Planets|Gustav Holst
Bolero|Maurice Ravel
La Mer|Claude Debussy
Carmen|Georges Bizet
Aida|Giuseppe Verdi
La Traviata|Giuseppe Verdi
Tosca|Giacomo Puccini
Turandot|Giacomo Puccini
The Rite of Spring|Igor Stravinsky
The Firebird|Igor Stravinsky
Finlandia|Jean Sibelius
The Creation|Joseph Haydn
Parsifal|Richard Wagner
Scheherazade|Nikolai Rimsky-Korsakov
Rhapsody in Blue|George Gershwin
Carmina Burana|Carl Orff
"""

_STARS = """
Sirius|Dog Star|Canis Major
Betelgeuse||Orion
Rigel||Orion
Vega||Lyra
Deneb||Cygnus
Altair||Aquila
Antares||Scorpius
Aldebaran||Taurus
Spica||Virgo
Regulus||Leo
Arcturus||Bootes
Capella||Auriga
Castor||Gemini
Pollux||Gemini
Canopus||Carina
Achernar||Eridanus
Algol|Demon Star|Perseus
Fomalhaut||Piscis Austrinus
"""

# Name, founder, city of the headquarters.
_COMPANIES = """
Microsoft|Bill Gates|Redmond
Apple|Steve Jobs|Cupertino
Amazon|Jeff Bezos|Seattle
Google|Larry Page|Mountain View
Facebook|Mark Zuckerberg|Menlo Park
Tesla|Elon Musk|Austin
Nvidia|Jensen Huang|Santa Clara
Dell|Michael Dell|Round Rock
Oracle|Larry Ellison|Austin
Ford|Henry Ford|Dearborn
Honda|Soichiro Honda|Tokyo
Ikea|Ingvar Kamprad|Delft
Nike|Phil Knight|Beaverton
Adidas|Adolf Dassler|Herzogenaurach
Disney|Walt Disney|Burbank
Nestle|Henri Nestle|Vevey
Siemens|Werner von Siemens|Munich
Philips|Gerard Philips|Amsterdam
"""

# Person and birthplace, for people who appear in the tables above and a few scientists.
_BIRTHPLACES = """
Fyodor Dostoevsky|Moscow
Franz Kafka|Prague
James Joyce|Dublin
Bram Stoker|Dublin
Johann von Goethe|Frankfurt
Dante Alighieri|Florence
Mary Shelley|London
Virginia Woolf|London
Charles Dickens|Portsmouth
William Shakespeare|Stratford
Gustave Flaubert|Rouen
Emile Zola|Paris
Voltaire|Paris
Pablo Picasso|Malaga
Johannes Vermeer|Delft
Sandro Botticelli|Florence
Claude Monet|Paris
Edouard Manet|Paris
Diego Velazquez|Seville
Antonio Vivaldi|Venice
George Handel|Halle
Wolfgang Mozart|Salzburg
Ludwig van Beethoven|Bonn
Franz Schubert|Vienna
Georges Bizet|Paris
Giacomo Puccini|Lucca
Richard Wagner|Leipzig
Carl Orff|Munich
Albert Einstein|Ulm
Marie Curie|Warsaw
Galileo Galilei|Pisa
Nikola Tesla|Smiljan
Charles Darwin|Shrewsbury
Max Planck|Kiel
Niels Bohr|Copenhagen
Robert Louis Stevenson|Edinburgh
Rudyard Kipling|Mumbai
Jeff Bezos|Albuquerque
Bill Gates|Seattle
"""


def _rows(block: str) -> list[list[str]]:
    return [line.split("|") for line in block.strip().splitlines()]


COUNTRIES = _rows(_COUNTRIES)
"""Rows of (country, alias or "", capital, currency, language)."""

_SYMBOLS = _ELEMENTS.split()
ELEMENTS = [
    (name, symbol, str(number))
    for number, (name, symbol) in enumerate(
        zip(_SYMBOLS[::2], _SYMBOLS[1::2], strict=True), start=1
    )
]
"""Triples of (element, symbol, atomic number), in order of the atomic number."""

BOOKS = _rows(_BOOKS)
PAINTINGS = _rows(_PAINTINGS)
COMPOSITIONS = _rows(_COMPOSITIONS)
STARS = _rows(_STARS)
COMPANIES = _rows(_COMPANIES)
BIRTHPLACES = _rows(_BIRTHPLACES)
