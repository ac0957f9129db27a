"""Turkish words for `TextGuard`. All are folded: lower case, no marks, one letter i.

Turkish inflects by suffixes, so antonyms are beginnings of words, and negation is found in the
verb's ending: gelmedi, gelmiyor, gelmez, gelmeyecek, gelmemis.
"""

from __future__ import annotations

from .tables import LanguageTables


def _set(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _pairs(text: str) -> tuple[tuple[str, str], ...]:
    return tuple((a, b) for a, _, b in (pair.partition("/") for pair in text.split()))


_MINUTE, _HOUR, _DAY = 60.0, 3600.0, 86400.0

TURKISH = LanguageTables(
    markers=_set("""
    ve bir bu icin nasil nedir neden nerede kac hangi mi mu midir misin musun miyim muyum degil var
    yok ile gibi daha cok olarak benim senin kim ne zaman gun hafta saat ise ama veya
    """),
    letters="\u011f\u011e\u015f\u015e\u0131\u0130",
    negations=_set("""
    degil degilim degildir degilse yok yoktur yoksa hayir asla hicbir hic olmadan haric yasak
    """),
    negation_pattern=(
        r"\w{2,}(?:m[iu]yor\w*|m[ae]z(?:s[ai]\w*|l[ae]r\w*|d[iu]\w*|m[iu]\w*)?|m[ae]d[i]\w{0,4}"
        r"|m[ae]y[ae]c[ae][kg]\w*|m[ae]mi[s]\w*|m[ae]y[i]n(?:iz)?|m[ae]m[ae]k\w*|[ae]m[ae]m)"
    ),
    not_negations=_set("""
    namaz komedi komediler komedisi emiyor emiyorum gomuyor yumuyor
    """),
    antonyms=_pairs("""
    acabil/kapat acar/kapat acarim/kapat acik/kapali acil/kapan acil/kapat aciyor/kapati
    acma/kapat actir/kapat aktif/pasif alacak/verecek alici/satici alis/satis alma/gonderme
    alma/satma almak/satmak anne/baba artar/azalir artir/azalt artis/azalis artti/azald
    asgari/azami bagla/kopar baglan/kop basarili/basarisiz basla/bit baslangic/bitis
    baslat/bitir baslat/durdur bos/dolu buyuk/kucuk buyut/kucult dahil/haric derin/sig
    dogru/yanlis dogu/bati dost/dusman ekle/cikar ekle/kaldir ekle/sil elle/otomatik erken/gec
    eski/yeni etkin/devredisi evet/hayir gelen/giden gelir/gider genc/yasli genis/dar
    girer/cikar giris/cikis girme/cikma goster/gizle guclu/zayif gunduz/gece guvenli/tehlikeli
    hafif/agir hizlan/yavasla hizli/yavas icinde/disinda ileri/geri ilk/son ince/kalin
    isit/sogut iyi/kotu izin/engelle izin/yasak kabul/red kabul/ret kadin/erkek kalici/gecici
    kalkis/varis kazan/kaybet kazanc/kayip kilitle/acil kilitli/kilitsiz kolay/zor kuru/islak
    kuzey/guney min/maks minimum/maksimum olumlu/olumsuz onayla/reddet once/sonra oncesi/sonrasi
    ozel/genel pozitif/negatif satin/satmak serbest/yasak sicak/soguk solda/sagda temiz/kirli
    ucuz/pahali uzat/kisalt uzun/kisa yatir/cek yatirma/cekme yukari/asagi yukle/indir
    yukle/kaldir yuksek/dusuk yuksel/dus yurtici/yurtdisi zengin/fakir
    """),
    prefixed=True,
    exclusive={
        "antonym": (
            _set("kirmizi turuncu sari yesil mavi mor pembe kahverengi siyah beyaz gri"),
            _set("sol sag"),
            _set("ust alt"),
            _set("kahvalti ogle aksam"),
            _set("sabah oglen aksam gece"),
            _set("ilkbahar yaz sonbahar kis"),
            _set("kredi banka"),
            _set("sanal fiziksel"),
            _set("gunluk haftalik aylik yillik"),
            _set("anne baba abla abi kardes ogul kiz"),
        ),
        "question": (_set("nerede neden kim"), _set("nerede nicin kim"), _set("nerede niye kim")),
        "person": (_set("benim senin onun bizim sizin onlarin"),),
    },
    named={
        "entity": _set("""
        adana almanya amerika ankara antalya atina avusturya azerbaycan baku belcika berlin brezilya
        bulgaristan bursa danimarka diyarbakir edirne erzurum eskisehir fransa gaziantep
        hindistan hollanda ingiltere iran irak ispanya israil istanbul isvec isvicre italya izmir
        japonya kanada kars kayseri kibris konya kore londra macaristan malatya mersin misir moskova
        norvec paris polonya portekiz romanya rusya samsun sivas suriye trabzon turkiye
        ukrayna urfa yunanistan almanca arapca fransizca ingilizce ispanyolca italyanca japonca
        rusca turkce
        """),
        "currency": _set("dolar avro euro sterlin lira tl ruble yen bitcoin"),
        "date": _set("""
        pazartesi sali carsamba persembe cuma cumartesi pazar subat mart nisan mayis haziran temmuz
        agustos eylul ekim kasim aralik bugun yarin dun
        """),
    },
    aliases={
        "avro": "euro",
        "tl": "lira",
        "amerika": "usa",
        "abd": "usa",
        "turkiye": "turkey",
        "almanya": "germany",
        "fransa": "france",
        "londra": "london",
    },
    units={
        **dict.fromkeys(("sn", "saniye"), ("time", 1.0)),
        **dict.fromkeys(("dk", "dakika"), ("time", _MINUTE)),
        **dict.fromkeys(("sa", "saat"), ("time", _HOUR)),
        "gun": ("time", _DAY),
        "hafta": ("time", 7 * _DAY),
        "ay": ("months", 1.0),
        **dict.fromkeys(("yil", "sene"), ("months", 12.0)),
        "metre": ("length", 1.0),
        "kilometre": ("length", 1000.0),
        "santim": ("length", 0.01),
        "gram": ("mass", 1.0),
        **dict.fromkeys(("kilo", "kilogram"), ("mass", 1000.0)),
        "litre": ("volume", 1.0),
        "derece": ("celsius", 1.0),
        **dict.fromkeys(("tl", "lira"), ("lira", 1.0)),
        "kurus": ("lira", 0.01),
        "dolar": ("dollar", 1.0),
        **dict.fromkeys(("avro", "euro"), ("euro", 1.0)),
        "sterlin": ("pound", 1.0),
        "yuzde": ("percent", 1.0),
    },
    numbers={
        "sifir": 0,
        "iki": 2,
        "uc": 3,
        "dort": 4,
        "bes": 5,
        "alti": 6,
        "yedi": 7,
        "sekiz": 8,
        "dokuz": 9,
        "on": 10,
        "yirmi": 20,
        "otuz": 30,
        "kirk": 40,
        "elli": 50,
        "altmis": 60,
        "yetmis": 70,
        "seksen": 80,
        "doksan": 90,
        "yarim": 0.5,
    },
    scales={"yuz": 1e2, "bin": 1e3, "milyon": 1e6, "milyar": 1e9},
    ordinals={
        "birinci": 1,
        "ikinci": 2,
        "ucuncu": 3,
        "dorduncu": 4,
        "besinci": 5,
        "altinci": 6,
        "yedinci": 7,
        "sekizinci": 8,
        "dokuzuncu": 9,
        "onuncu": 10,
    },
    suffixes=(
        r"'?(?:y?[aeiu]|[dt][ae](?:n|ki)?|n[iu]n|[iu]n|s[iu]|s[iu]n[ae]?|y[iu]|n[ae]"
        r"|l[iu]k|l[iu]|l[ae]r\w{0,6}|y?l[ae])"
    ),
)
