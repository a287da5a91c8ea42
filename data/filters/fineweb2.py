"""FineWeb-2: thresholds and stop words of each language (arXiv:2506.20920).

Source: huggingface/fineweb-2 `configs/<name>.yml`, commit d0defb2, which has 1,929 languages;
more can be added to the table. The bounds were set on words of spaCy's and other segmenters. Here
words of scripts without spaces are estimated from their characters (`data.writing`), Korean words
are runs between spaces and Vietnamese ones syllables, so their n-gram bounds are approximate.
"""

from __future__ import annotations

import dataclasses
import unicodedata


@dataclasses.dataclass(frozen=True)
class Language:
    """Thresholds and stop words of one language.

    Attributes:
        name: ISO 639-3 code and script, as in FineWeb-2.
        score: minimum score of GlotLID, not of the identifier used here.
        lines: maximum duplicate lines, minimum lines that end a sentence, maximum newlines per
            word.
        words: minimum and maximum mean characters of a word, minimum share of words with a letter.
        top: maximum characters in the top 2-, 3- and 4-gram.
        duplicate: maximum characters in duplicate 5- ... 10-grams.
        stop_words: a document must contain two of them.
    """

    name: str
    score: float
    lines: tuple[float, ...]
    words: tuple[float, ...]
    top: tuple[float, ...]
    duplicate: tuple[float, ...]
    stop_words: tuple[str, ...]


def _read(table: str) -> dict[str, Language]:
    """Reads a row of numbers per language, in the order of `Language`, and its stop words."""
    rows: list[tuple[list[str], list[str]]] = []
    for line in unicodedata.normalize("NFC", table).strip().splitlines():
        if line.startswith(" "):
            rows[-1][1].extend(line.split())
        else:
            rows.append((line.split(), []))
    read = {}
    for (code, name, *numbers), stop_words in rows:
        values = tuple(map(float, numbers))
        read[code] = Language(name, values[0], values[1:4], values[4:7], values[7:10], values[10:],
                              tuple(stop_words))
    return read


FINEWEB2 = _read("""
af afr_Latn .3 .412 .053 .209 3 11 .707 .707 .557 .418 .192 .162 .149 .128 .113 .101
    die van in en is n het wat sy op the word
am amh_Ethi .3 .672 0 .417 1 24 .824 .535 .433 .388 .273 .242 .228 .205 .183 .157
    ፣ ነው እና ፡ ምሳሌ ላይ ፤ ነበር ውስጥ ግን ወደ ልጆች እንደ የአማርኛ ወይም ነገር በኋላ ጊዜ ቀን ሲሆን ጋር ዘመን ዓ.ም. እስከ ይህ ትርጉሙ
    የኢትዮጵያ ፦
ar arb_Arab .711 .304 .143 .189 2 9 .787 .197 .172 .146 .165 .153 .142 .131 .12 .109
    ، في من على إلى عام أن مع أو هو عن التي كان بين ما كانت هي المتحدة بعد
ast ast_Latn .3 .679 .195 .167 3 10 .824 1.597 1.59 1.469 .412 .379 .328 .313 .306 .287
    de la y a del en los que el les so una un
az azj_Latn .3 .879 .188 .179 3 13 .725 .514 .475 .405 .3 .271 .252 .227 .202 .179
    və ilə ildə bir bu azərbaycan olan üçün sonra də kimi il isə o görə da tərəfindən çox ki onun
    edir idi
ba bak_Cyrl .9 .217 .222 .134 3 11 .72 .221 .171 .133 .128 .12 .103 .092 .084 .077
    һәм буйынса һыу менән йылға йылда бассейны йылдың рәсәй дәүләт тиклем була коды өсөн бер гө км
    был ул уҡ йыл уның урынлашҡан халыҡ тип
be bel_Cyrl .892 .261 .143 .216 3 11 .72 .196 .153 .135 .124 .116 .103 .094 .084 .075
    і у ў з на года да годзе па ад за быў не што г. для таксама а яго як вобласці пасля
bg bul_Cyrl .9 .317 .154 .142 3 10 .756 .173 .157 .139 .17 .158 .144 .131 .12 .108
    на и в е от за се г. с през да по
bn ben_Beng .872 .203 .125 .171 3 24 .8 .177 .158 .147 .118 .108 .099 .09 .082 .073
    এবং ও হয় করে একটি তিনি করা থেকে
bo bod_Tibt .682 .261 0 .417 1 23 .824 .206 .205 .175 .174 .153 .14 .129 .115 .102
    ། དང་ ལ་ ཀྱི་ དུ་ ནས་ གི་ གྱི་ ནི་
br bre_Latn .809 .196 .062 .253 3 12 .805 .242 .181 .157 .114 .099 .083 .075 .068 .062
    e ar a an ha gant da en ur hag eus zo oa eo
bs bos_Latn .516 .262 .1 .196 1 16 .764 .157 .142 .128 .144 .136 .127 .117 .108 .098
    je i u se na su od za da godine
ca cat_Latn .815 .294 .154 .118 2 11 .832 .216 .189 .168 .159 .149 .137 .126 .116 .105
    de el la a i d l' en d' que va els per un les una amb es
ceb ceb_Latn .3 .248 .008 .194 3 11 .829 .674 .553 .445 .14 .124 .112 .098 .088 .078
    sa ang nga mga ug ni c ° niini palibot nasod km milimetro gi basihan kasarangang bulan
ckb ckb_Arab .713 .242 0 .246 3 36 .81 .176 .164 .151 .14 .133 .122 .115 .103 .097
    لە ، و بە کە بۆ ساڵی لەگەڵ بوو ئەم ئەو وەک بووە یان کرد دوای لەسەر گوندی
cs ces_Latn .88 .311 .06 .182 3 11 .781 .206 .183 .165 .168 .157 .145 .133 .121 .109
    v a se na je z s do
cy cym_Latn .745 .269 .25 .167 3 9 .828 .258 .196 .165 .144 .131 .12 .108 .097 .088
    yn y a ffilm o gan 'r ar mae yw cyfarwyddwr ei i oedd wedi
da dan_Latn .3 .305 .1 .182 3 11 .798 .367 .297 .232 .169 .158 .147 .134 .123 .112
    i og af en til er den at som på for med det blev var der fra de han et
de deu_Latn .821 .263 0 .152 0 15 .774 .169 .153 .137 .141 .134 .126 .117 .108 .098
    der und die in von im den des mit das er dem als wurde für
dv div_Thaa .9 .281 .1 .25 4 70 .898 .179 .161 .146 .157 .145 .135 .125 .113 .104
    ، އަދި އެވެ. އަކީ ވަނަ އެންމެ ނުވަތަ ވެސް ގެ އާއި ތެރޭގައި މި ވަރަށް މިއީ މީހުން އަށް ހުންނަ
    އަހަރު ފުރަތަމަ ވެއެވެ. ދިވެހި މަހުގެ ގައި ހުރެއެވެ. ގޮތުގައި އެއީ ބައެއް
el ell_Grek .826 .31 .167 .116 3 11 .809 .194 .175 .156 .174 .163 .153 .142 .13 .119
    του και το της η την από ο με τον να που των στην για στο σε είναι τη τα οι
eo epo_Latn .837 .218 .125 .207 3 12 .78 .42 .285 .207 .088 .08 .071 .065 .06 .052
    la de en kaj estas al estis li
es spa_Latn .84 .252 .182 .138 3 14 .825 .156 .14 .125 .145 .136 .127 .117 .108 .099
    de la en el y a que del los se por un con una las su
et ekk_Latn .638 .363 .143 .213 3 13 .722 .345 .268 .215 .172 .161 .15 .139 .125 .113
    ja on oli ta aastal eesti ka ning et mis kui aasta ei või see oma tema
eu eus_Latn .701 .298 .167 .25 4 11 .788 .263 .227 .192 .152 .14 .129 .118 .108 .096
    eta da ziren zen bat zuen zeuden izan
fa fas_Arab .85 .246 .2 .15 2 9 .812 .189 .164 .143 .157 .147 .137 .127 .117 .107
    در و ، به از که است این را با یک
fi fin_Latn .764 .293 .114 .161 3 14 .755 .253 .202 .179 .153 .143 .133 .122 .112 .101
    ja on oli hän vuonna myös joka se ei sen ovat sekä mutta että tai vuoden kanssa hänen s.
    jälkeen the
fr fra_Latn .824 .264 .1 .185 2 11 .812 .161 .149 .134 .15 .141 .131 .121 .111 .1
    de la le et à en l' des du les est d' un une il dans par au
fy fry_Latn .723 .248 .056 .181 2 11 .811 .243 .213 .176 .12 .113 .102 .093 .083 .075
    de fan yn it en in e op is mei dat
ga gle_Latn .3 .395 0 .214 2 11 .816 .533 .421 .379 .203 .181 .181 .155 .145 .132
    an a na agus ar i is le sa go é ag sé bhí de
gd gla_Latn .637 .276 0 .364 2 12 .788 .487 .363 .267 .148 .138 .127 .118 .107 .097
    an a ann na e tha agus air a' am 's bha
gl glg_Latn .3 .906 .136 .182 1 10 .824 .629 .399 .354 .266 .242 .221 .2 .18 .159
    de a e o en que do da un no os na é unha como
gu guj_Gujr .728 .299 .2 .097 3 22 .812 .204 .178 .151 .132 .122 .113 .102 .094 .084
    છે અને આ જ એક આવેલા તેમ કે ગામમાં પણ માટે ખેતી આવે કરવામાં ભાગમાં તે હતી હતા પર મુખ્ય હતો જે
    ભારત હતું આવેલું ગામ સાથે ગુજરાત કરી રાજ્યના પશ્ચિમ દેશના તરીકે દ્વારા મુખ્યત્વે જેવી પ્રાથમિક
    અન્ય શાળા હોય એ પશુપાલન ગામના ખેતમજૂરી આંગણવાડી વ્યવસાય પંચાયતઘર ડેરી કરે પ્રાપ્ય દૂધની સવલતો
    લોકોનો તાલુકામાં જિલ્લામાં
he heb_Hebr .9 .34 .2 .126 2 9 .799 .239 .202 .173 .16 .151 .14 .129 .118 .108
    של את על הוא עם בשנת גם היה היא לאחר לא ידי בין או כי
hi hin_Deva .692 .206 .091 .316 2 21 .837 .208 .198 .161 .135 .125 .116 .108 .099 .09
    के में है की और से का को एक हैं पर
hr hrv_Latn .467 .312 .099 .198 2 11 .751 .215 .19 .165 .173 .162 .15 .138 .126 .113
    je u i se na su za od s a
hu hun_Latn .744 .322 .067 .231 3 15 .766 .226 .198 .172 .169 .159 .148 .136 .124 .112
    a az és is egy volt hogy nem meg de magyar első el között
hy hye_Armn .678 .285 .167 .16 4 11 .778 .225 .206 .184 .157 .146 .133 .123 .111 .099
    է և են էր թվականի թվականին որ իր ծրագիր նա նաև որը այն հետ համար ու նրա այդ առաջին մի էին իսկ
    որպես
id ind_Latn .685 .241 .111 .157 3 12 .805 .194 .166 .145 .166 .155 .144 .133 .122 .111
    dan yang di pada dari ini dengan adalah untuk dalam
is isl_Latn .863 .292 .095 .25 2 13 .8 .21 .183 .163 .157 .15 .143 .126 .114 .104
    og í á að sem er var til við en af um hann með
it ita_Latn .817 .246 .025 .2 3 21 .807 .198 .156 .133 .144 .136 .127 .118 .109 .1
    di e il la in a del che è della un per nel l' con da i una
ja jpn_Jpan .886 .328 .096 .13 1 6 .759 .239 .196 .172 .243 .225 .207 .19 .175 .159
    の に を は た て が と で 年 し ・ 月 れ さ
jv jav_Latn .3 .369 .094 .222 1 12 .777 .639 .506 .445 .256 .236 .221 .203 .176 .158
    ing lan kang iku sing saka ingkang iki
ka kat_Geor .9 .332 .111 .222 3 13 .754 .225 .189 .167 .157 .146 .134 .122 .111 .1
    და წლის წელს იყო რომელიც რომ მისი შემდეგ რესურსები ინტერნეტში ამ იგი არ the როგორც საქართველოს
kk kaz_Cyrl .844 .304 .176 .186 3 12 .694 .172 .147 .127 .159 .148 .136 .126 .115 .104
    және су бойынша мен жылы коды өзен орналасқан мәліметтер жер бұл саны тұрғындарының адамды оның
    болып алып мемлекеттік құрайды жаңа ол гз бар жатқан
km khm_Khmr .3 .917 0 .361 2 13 .905 .594 .523 .438 .175 .16 .148 .135 .121 .109
    មាន បាន ដែល ជា និង នៅ របស់ ក្នុង ថា នេះ នៃ ហើយ ទៅ ដោយ
kn kan_Knda .9 .25 .095 .193 3 67 .783 .214 .183 .165 .135 .126 .118 .11 .101 .093
    ಮತ್ತು ಈ ಒಂದು ಎಂದು ಅಥವಾ ಅವರು ಇದು ಹಾಗೂ ಅವರ ಎಂಬ ಮೇಲೆ ನಂತರ ತನ್ನ ಆದರೆ ತಮ್ಮ ರಲ್ಲಿ ಮೂಲಕ ಹೆಚ್ಚು
ko kor_Hang .842 .374 .062 .196 1 6 .791 .282 .228 .185 .201 .184 .168 .154 .14 .127
    의 다 이 는 에 을 한 년 하 은 를 했 고 에서 가 있 으로 인 월 로 되
ku kmr_Latn .858 .236 .222 .167 2 10 .783 .253 .201 .14 .112 .103 .097 .089 .081 .073
    û li bi ji de di ye ku ya jî xwe e ser
ky kir_Cyrl .756 .311 .133 .17 4 12 .623 .247 .189 .161 .167 .16 .136 .125 .119 .111
    жана менен боюнча кыргыз суу ж. бир мамлекеттик колдонулган адабияттар жылы ал коду isbn башкы
    болгон б шилтемелер б. да болуп энциклопедия үчүн бул же борбору анын а. калкы эле тил
la lat_Latn .727 .452 .1 .281 3 11 .762 .15 .147 .14 .457 .449 .436 .42 .4 .378
    et in est anno praefecturae de a ad
lb ltz_Latn .3 .409 .048 .26 1 16 .783 .616 .509 .445 .24 .218 .197 .177 .161 .143
    de an der d' vun a vum den am ass déi regie huet eng
lo lao_Laoo .691 .327 0 .2 2 9 .85 .198 .175 .143 .187 .175 .163 .149 .135 .123
    ແລະ ໃນ ຂອງ ເປັນ ທີ່ ໄດ້ ມີ
lt lit_Latn .699 .32 .167 .19 3 12 .688 .247 .21 .174 .175 .163 .15 .137 .126 .114
    m ir buvo į nuo iš d su yra lietuvos a iki o kaip kad apie po km
lv lvs_Latn .3 .329 .125 .169 2 13 .727 .526 .337 .242 .173 .16 .148 .135 .122 .109
    un ir no ar gadā gada par bija arī
mg plt_Latn .619 .332 0 .317 2 10 .769 .33 .293 .264 .151 .137 .129 .119 .109 .099
    ny dia amin'ny ao ary i taona tanàna kaominina ara koa tamin'ny
mk mkd_Cyrl .88 .248 .133 .172 2 10 .781 .199 .189 .172 .138 .128 .119 .109 .099 .09
    на во и од се за со е година да како
ml mal_Mlym .9 .239 .111 .174 4 37 .774 .191 .18 .164 .138 .132 .125 .116 .108 .099
    ഒരു ഈ ൽ എന്ന ഇത് അദ്ദേഹം നിന്ന് ചെയ്തു ആണ് അവർ ഓഫ് ഏറ്റവും മുതൽ പ്രധാന
mn khk_Cyrl .889 .324 .077 .222 2 11 .781 .184 .165 .143 .181 .169 .156 .144 .132 .12
    нь онд оны юм улсын байна сарын болон байсан энэ бөгөөд их монгол ба олон улс гэж хүн нэг
    байдаг
mr mar_Deva .9 .233 .008 .351 2 35 .798 .156 .15 .137 .145 .138 .131 .122 .114 .105
    आहे आणि हे व या एक ते हा आहेत स असते होते ही येथे मध्ये केले असतो महाराष्ट्र हवामान इ गाव
    राज्यातील जाते केली जिल्ह्यातील म्हणून पर्यंत
ms zsm_Latn .618 .331 .125 .214 3 11 .808 .264 .252 .225 .185 .176 .166 .156 .145 .134
    dan di yang pada dalam dengan untuk ini
mt mlt_Latn .3 .395 .111 .162 3 13 .823 .949 .746 .548 .212 .193 .175 .159 .142 .125
    l- tal- u ta' il- li fl- fil- mill-
my mya_Mymr .839 .278 0 .07 2 21 .75 .161 .152 .133 .167 .155 .145 .134 .124 .113
    သည် များ ကို တွင် ဖြစ် ၏ သော ခဲ့ နှင့် ရှိ တို့ မှာ ဦး ၌ က မ မှ
ne npi_Deva .896 .155 .125 .278 3 37 .824 .114 .103 .091 .098 .09 .083 .076 .069 .062
    र छ थियो हो एक पनि मा थिए यो
nl nld_Latn .689 .296 .102 .154 3 17 .828 .213 .182 .158 .156 .146 .136 .126 .115 .104
    de van in het een en is op voor met door zijn werd hij uit
nn nno_Latn .3 .281 .125 .195 3 11 .815 .899 .705 .375 .16 .149 .135 .125 .114 .102
    i og av er som til på ein det med for den han vart frå var dei
no nob_Latn .813 .283 .107 .167 3 12 .783 .204 .175 .15 .146 .139 .128 .119 .11 .099
    i og av som en er til på for ble med den det var han de å fra
oc oci_Latn .3 .521 .091 .471 2 12 .833 .651 .526 .411 .283 .253 .222 .202 .186 .164
    de la e lo en a es per que un una del dins las
or ory_Orya .3 .225 0 .889 3 30 .786 .227 .201 .184 .155 .15 .137 .13 .116 .106
    ଓ ଏହି ସେ ଏକ ଏବଂ କରିଥିଲେ ଏହା ପାଇଁ ମଧ୍ୟ ଭାବରେ ମସିହାରେ ପରେ ଜଣେ ହୁଏ କରି ବା ତାଙ୍କ ଥିଲେ ଭାରତୀୟ ଏହାର
    ଅଟେ ଓଡ଼ିଶା କରିବା
pa pan_Guru .84 .328 .153 .117 2 19 .83 .191 .154 .133 .153 .142 .129 .119 .109 .098
    ਵਿੱਚ ਦੇ ਹੈ ਅਤੇ ਦੀ ਨੂੰ ਦਾ ਸੀ ਇੱਕ ਤੋਂ ਨੇ ਹਨ ਤੇ ਲਈ ਨਾਲ
pl pol_Latn .689 .32 .087 .158 3 12 .726 .222 .198 .176 .172 .16 .148 .136 .123 .111
    w i na z do się roku od a jest przez po jako oraz o został był nie
ps pbt_Arab .795 .236 .029 .222 2 21 .867 .167 .154 .136 .119 .108 .098 .088 .081 .072
    د په ، او کې چې له ته سره
pt por_Latn .799 .287 .077 .186 3 13 .814 .371 .191 .163 .163 .153 .141 .13 .119 .108
    de a e o em do da que um no uma com para na é foi
ro ron_Latn .822 .289 .081 .207 1 14 .779 .161 .146 .131 .16 .149 .138 .127 .117 .106
    de în a și din la o cu este un pe fost care al
ru rus_Cyrl .9 .322 .231 .139 3 11 .713 .184 .164 .146 .168 .156 .145 .133 .121 .109
    в и на с года по году из был к не от что за для его как а он также до после
sd snd_Arab .815 .248 0 7.25 2 50 .799 .211 .171 .127 .129 .118 .107 .099 .09 .08
    جي ، ۾ ۽ جو آهي کي تي کان سان
si sin_Sinh .798 .274 0 .226 2 58 .833 .236 .216 .194 .164 .156 .146 .136 .125 .114
    සහ අතර හා වන ලෙස මෙම වූ විය ඇති විසින් කරන සඳහා ද වේ ඇත දී එය හෝ කර ඔහු කළ කිරීම ශ්‍රී යන නම්
    බව
sk slk_Latn .667 .319 0 .214 2 11 .752 .316 .218 .171 .176 .165 .152 .14 .127 .115
    v a na sa je z roku s
sl slv_Latn .6 .317 .045 .273 2 12 .781 .262 .225 .189 .17 .158 .146 .135 .123 .111
    je v in na so se ki za leta z
so som_Latn .3 .405 0 .29 2 74 .831 .812 .846 .811 .285 .27 .251 .232 .211 .191
    oo iyo ka ah ee ku u waa la waxaa ay soo uu waxay
sq als_Latn .757 .241 .066 .273 1 14 .788 .152 .136 .116 .131 .122 .113 .105 .096 .087
    të e në dhe i një me nga për është që më u si
sr srp_Cyrl .872 .257 .156 .239 3 10 .8 .176 .158 .141 .147 .137 .126 .116 .106 .096
    у је и на се од су године да за из са насеље
su sun_Latn .3 .411 .25 .149 2 9 .789 .604 .483 .416 .271 .251 .228 .206 .181 .162
    di nu astéroid jeung nyaéta anu ieu dina tina jadi kabupatén pikeun indonésia
sv swe_Latn .629 .292 .2 .135 3 12 .841 .242 .195 .174 .156 .147 .136 .125 .116 .105
    i och är av en som den med på till att för
sw swh_Latn .3 .302 .143 .167 3 9 .802 .396 .282 .231 .193 .17 .155 .14 .126 .113
    ya na wa katika kwa ni la za mwaka
ta tam_Taml .888 .276 .125 .195 4 37 .779 .23 .212 .19 .149 .14 .132 .123 .114 .104
    மற்றும் ஒரு இந்த ஆம் இது என்ற இவர் உள்ள ஆகும் ஆண்டு அல்லது என்பது முதல் உள்ளது என்று இந்திய
    மக்கள் ஊராட்சி இல் இருந்து மேலும் பல
te tel_Telu .722 .256 .08 .18 4 68 .739 .21 .18 .162 .142 .133 .122 .114 .105 .096
    నుండి కి ఉన్నాయి మీ గ్రామం ఉంది దూరంలో ఈ కేంద్రం
tg tgk_Cyrl .766 .291 .111 .316 3 11 .71 .217 .183 .151 .151 .142 .133 .122 .113 .103
    дар ва аз ба ки аст соли бо деҳа дорад
th tha_Thai .9 .349 0 .153 2 10 .9 .221 .197 .162 .185 .168 .152 .137 .124 .111
    ใน ที่ และ ของ เป็น มี การ ได้
tk tuk_Latn .666 .276 0 1 1 24 .769 .406 .337 .274 .17 .151 .138 .125 .117 .104
    we bilen hem bu üçin bir ol boýunça ýylda da bolsa onuň de bolup bolan öz uly dünýä şol ýaly iň
    ýylyň
tl fil_Latn .68 .263 .091 .159 3 12 .821 .286 .228 .179 .15 .141 .129 .119 .11 .1
    ng sa ang na mga ay at isang noong
tr tur_Latn .875 .272 .091 .222 3 21 .773 .214 .168 .147 .154 .144 .134 .124 .113 .103
    ve bir olarak bu ile için olan da de tarafından yılında sonra en daha ilk the
tt tat_Cyrl .86 .356 .333 .308 3 11 .692 .26 .259 .243 .197 .187 .168 .16 .149 .136
    урнашкан һәм ° климаты географиясе c уртача халык
ug uig_Arab .874 .293 0 .394 2 15 .782 .2 .159 .134 .136 .123 .108 .097 .087 .079
    ، ۋە بىر بىلەن بۇ بولۇپ بولغان ياكى ئۇيغۇر ئۇ دەپ ئۈچۈن بولىدۇ ئۇنىڭ قىلىپ بار
uk ukr_Cyrl .9 .3 .167 .175 3 11 .694 .189 .172 .153 .16 .148 .136 .124 .113 .102
    у в на і з та до року за що
ur urd_Arab .847 .204 .1 .222 2 31 .839 .139 .123 .107 .125 .115 .107 .098 .089 .081
    کے میں ، کی اور ہے سے کا نے اس پر کو ایک
uz uzn_Latn .631 .254 .25 .159 3 13 .691 .871 .543 .357 .15 .139 .128 .12 .109 .093
    va bilan u uchun joylashgan bir bu boʻlgan ham uning aholi birinchi edi eng tomonidan boʻlib
    nafar qiladi km2 yoki sifatida
vi vie_Latn .802 .293 .333 .103 3 11 .803 .223 .197 .171 .178 .163 .15 .136 .124 .111
    là và của một được trong năm các có loài này đã người
yi ydd_Hebr .821 .355 .083 .222 2 14 .83 .321 .319 .281 .189 .174 .162 .15 .137 .126
    די פון אין און איז א דער האט ער צו וואס דעם רבי
yue yue_Hani .412 .442 .111 .238 1 5 .765 1.238 .854 .623 .241 .216 .204 .193 .182 .17
    嘅 係 年 喺 有 佢 月 個 咗 香港 一 同 呢 人 唔 都 到 號 國 啲 後 就 會 市 鎮 而 嚟 可以 由 嗰
    做 為
zh cmn_Hani .692 .287 .106 .178 1 5 .735 .256 .201 .171 .198 .182 .167 .154 .14 .127
    的 年 在 月 是 和 日 了 於 · 為 有 被 人 中 为 他 與 後 也 而 由
""")
