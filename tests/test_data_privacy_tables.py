"""Telephone numbers, addresses and IPs over countries and scripts, against what resembles them.

Numbers stand between ⟦ and ⟧ in the positives. The figures of docs/curation.md are counted here.
"""

import pytest

from data.privacy import redaction
from data.privacy.redaction import find

PHONES = {
    "India": ["Call me on ⟦+91 98765 43210⟧ after six.", "⟦+919876543210⟧", "⟦+91-98765-43210⟧",
              "Mob: ⟦98765 43210⟧", "Contact No. ⟦9876543210⟧ (Ravi)", "मोबाइल: ⟦98765-43210⟧",
              "WhatsApp ⟦9876543210⟧", "फोन नंबर ⟦०११-२३४५६७८९⟧", "Ph.No: ⟦011-23456789⟧",
              "(⟦+91) 98765 43210⟧"],
    "China": ["电话：⟦138 0013 8000⟧", "手机⟦13800138000⟧，请联系", "⟦+86 138 0013 8000⟧",
              "⟦138-0013-8000⟧", "联系电话：⟦010-82345678⟧转分机", "请致电⟦0755-86123456⟧。",
              "手机号码：⟦１３８００１３８０００⟧", "⟦+86-10-8234-5678⟧"],
    "Japan": ["携帯は⟦080-1234-5678⟧です", "TEL ⟦03-1234-5678⟧",
              "電話番号：⟦０９０－１２３４－５６７８⟧",
              "⟦+81 90-1234-5678⟧", "⟦+81 (0)3 1234 5678⟧", "お電話 ⟦045-123-4567⟧ まで",
              "⟦070 1234 5678⟧"],
    "Korea": ["휴대폰 ⟦010-1234-5678⟧", "⟦010-9876-5432⟧로 연락 주세요", "전화: ⟦02-123-4567⟧",
              "⟦+82 10-1234-5678⟧", "전화번호 ⟦031-123-4567⟧"],
    "Brazil": ["⟦+55 (11) 91234-5678⟧", "ligue ⟦(11) 91234-5678⟧", "Zap: ⟦11 91234-5678⟧",
               "Fone ⟦(21) 3456-7890⟧", "Celular: ⟦11912345678⟧", "⟦+55 11 91234 5678⟧"],
    "Nigeria": ["⟦+234 803 123 4567⟧", "reach Ada on ⟦0803 123 4567⟧", "⟦+2348031234567⟧",
                "phone ⟦08031234567⟧"],
    "Egypt": ["⟦+20 10 1234 5678⟧", "هاتف: ⟦٠١٠ ١٢٣٤ ٥٦٧٨⟧", "موبايل ⟦01012345678⟧",
              "⟦010 1234 5678⟧"],
    "Indonesia": ["⟦+62 812-3456-7890⟧", "WA ke ⟦0812-3456-7890⟧ ya", "No. HP: ⟦081234567890⟧",
                  "Telp. ⟦021-5551234⟧"],
    "Saudi Arabia": ["جوال ⟦٠٥٠١٢٣٤٥٦٧⟧", "⟦+966 50 123 4567⟧", "⟦050 123 4567⟧",
                     "رقم الهاتف: ⟦٠٥٠ ١٢٣ ٤٥٦٧⟧"],
    "Iran": ["تلفن: ⟦۰۲۱-۸۸۱۲۳۴۵۶⟧", "⟦+98 912 345 6789⟧", "موبایل ⟦۰۹۱۲ ۳۴۵ ۶۷۸۹⟧"],
    "Russia": ["тел. ⟦8 (495) 123-45-67⟧", "⟦+7 (916) 123-45-67⟧", "⟦8-916-123-45-67⟧",
               "Телефон: ⟦89161234567⟧", "моб. ⟦+79161234567⟧"],
    "Turkey": ["⟦+90 532 123 45 67⟧", "Cep: ⟦0532 123 45 67⟧", "⟦0532 123 45 67⟧"],
    "Pakistan": ["⟦0300-1234567⟧", "⟦+92 300 1234567⟧", "cell no ⟦0300 1234567⟧"],
    "Bangladesh": ["⟦01712-345678⟧", "⟦+880 1712-345678⟧", "মোবাইল: ⟦০১৭১২-৩৪৫৬৭৮⟧"],
    "Vietnam": ["ĐT: ⟦0912 345 678⟧", "⟦+84 912 345 678⟧", "điện thoại ⟦0912345678⟧"],
    "Thailand": ["โทร. ⟦081-234-5678⟧", "⟦+66 81 234 5678⟧", "เบอร์โทรศัพท์: ⟦02-123-4567⟧"],
    "Philippines": ["⟦+63 917 123 4567⟧", "text ⟦0917 123 4567⟧", "⟦0917-123-4567⟧"],
    "Kenya": ["⟦+254 712 345 678⟧", "M-Pesa ⟦0712 345 678⟧"],
    "South Africa": ["⟦+27 82 123 4567⟧", "⟦082 123 4567⟧"],
    "Israel": ["⟦052-123-4567⟧", "⟦+972-52-123-4567⟧", "טלפון: ⟦03-1234567⟧"],
    "Malaysia": ["⟦012-345 6789⟧", "⟦+60 12-345 6789⟧", "H/P: ⟦012-3456789⟧"],
    "Mexico": ["⟦+52 55 1234 5678⟧", "Tel. ⟦55 1234 5678⟧", "teléfono: ⟦(55) 1234-5678⟧"],
    "Argentina": ["⟦+54 9 11 1234-5678⟧", "celular ⟦11 1234-5678⟧"],
    "United Kingdom": ["⟦+44 (0)20 7946 0958⟧", "⟦07700 900123⟧", "⟦0044 20 7946 0958⟧",
                       "Telephone: ⟦020 7946 0958⟧"],
    "Germany": ["⟦+49 30 901820⟧", "Handy: ⟦0171 1234567⟧", "⟦030-12345678⟧",
                "Tel.: ⟦0049 (0)30 901820⟧", "⟦0049-171-1234567⟧"],
    "France": ["Tél. ⟦06 12 34 56 78⟧", "⟦+33 6 12 34 56 78⟧", "⟦0033 6 12 34 56 78⟧"],
    "United States": ["⟦(415) 555-2671⟧", "⟦+1 415-555-2671 ext. 204⟧", "⟦415-555-2671 x12⟧",
                      "\"phone\": \"⟦4155552671⟧\"", "⟦＋１ ４１５ ５５５ ２６７１⟧"],
    "Ghana": ["Call ⟦+233 24 123 4567⟧ today", "⟦024 123 4567⟧ is his line"],
    "Ukraine": ["тел.: ⟦+380 (44) 123-45-67⟧", "моб: ⟦067 123 45 67⟧"],
    "Poland": ["tel. ⟦22 123 45 67⟧", "kom. ⟦+48 601 234 567⟧", "tel: ⟦601-234-567⟧"],
    "Spain": ["Tel: ⟦912 34 56 78⟧", "móvil ⟦612 345 678⟧", "⟦+34 612 345 678⟧"],
    "Italy": ["cell. ⟦333 1234567⟧", "Tel. ⟦02 1234567⟧", "⟦+39 02 1234 5678⟧"],
    "Singapore": ["⟦+65 9123 4567⟧", "Tel: ⟦6123 4567⟧", "HP ⟦9123 4567⟧"],
    "Hong Kong": ["電話：⟦2123 4567⟧", "⟦+852 9123 4567⟧"],
    "Taiwan": ["手機：⟦0912-345-678⟧", "⟦+886 912 345 678⟧", "電話 ⟦(02) 2345-6789⟧"],
    "Nepal": ["⟦+977 98-41234567⟧", "सम्पर्क: ⟦९८४१२३४५६७⟧"],
    "Sri Lanka": ["⟦077 123 4567⟧", "hotline: ⟦011 2 345 678⟧"],
    "UAE": ["⟦+971 50 123 4567⟧", "mobile ⟦050-1234567⟧", "هاتف ⟦٠٤ ١٢٣ ٤٥٦٧⟧"],
    "Greece": ["τηλ. ⟦210 1234567⟧", "κιν: ⟦6971234567⟧"],
    "Australia": ["mob ⟦0412 345 678⟧", "⟦+61 412 345 678⟧", "Ph: ⟦(02) 9876 5432⟧"],
    "Ethiopia": ["⟦+251 91 123 4567⟧", "⟦0911 234567⟧"],
    "Morocco": ["GSM ⟦06 61 23 45 67⟧", "⟦+212 661-234567⟧"],
    "Colombia": ["cel ⟦300 123 4567⟧", "⟦+57 300 1234567⟧"],
    "Chile": ["⟦+56 9 1234 5678⟧", "fono ⟦9 1234 5678⟧"],
    "Tanzania": ["⟦0754 123 456⟧", "Simu: ⟦0754123456⟧"],
    "China, more": ["请拨打⟦400-123-4567⟧", "联系人：王先生 ⟦13912345678⟧",
        "Tel:⟦86-21-61234567⟧"],
    "Japan, more": ["☎⟦03-1234-5678⟧", "FAX：⟦06-1234-5678⟧", "フリーダイヤル⟦0120-123-456⟧"],
    "India, more": ["Phone : ⟦+91-11-23456789⟧", "call ⟦080-23456789⟧",
        "Ravi, ⟦+91 9876543210⟧, Delhi", "Mobile No.- ⟦9876543210⟧",
        "Toll Free: ⟦1800 123 4567⟧"],
}

NO_PHONES = """
On 2024-03-15 and 15-03-2024, 03/15/2024, 2024.03.15
released 08-03-2024, 03-2021-0045 is the docket
2024-01-02T12:30:45+05:30, 12:30:00+0900 and Sat, 02 Mar 2024 10:11:12 +0300
1700000000, 1700000000000 and 1700000000.123456
20240315123456, 2024-03-15-10-11-12, IMG_20240315_101112
ISBN 978-0-306-40615-7, ISBN 0-306-40615-2, ISBN 7-5600-1234-5
ISBN 978 4 06 123456 7, ISSN 0317-8471
order no. 0812345678901, Order #112-0812345-1234567
Bestellnummer 4006381333931, SKU 0123-4567-89-AB
invoice 2024-000123, PO 4500123456
40.7128, -74.0060 and +40.7128 -74.0060
+27.9881 86.9250, 27.9881N 86.9250E
lat=35.6894875 lon=139.6917064
POINT(139.6917 35.6895), 51.5074° N, 0.1278° W
version 10.0.19045.3803, 1.2.840.113549.1.1.11
v2.31.0, Python 3.11.4, gcc 13.2.0-4ubuntu3
$1,234,567.89, € 12.345.678,90, ₹ 98,765,43,210
Rs. 9876543210 crore, 1 234 567 890 people
The sum is 98765 43210 11111, of 12345 67890 in all
6.02214076e+23, 1.602e-19, 3.0E+08, 1.5e+20 12345678
x = 5 +23456789012 and n+4412345678 - 1
commit 0812345678901234567890123456789012345678
sha1 da39a3ee5e6b4b0d3255bfef95601890afd80709
550e8400-0812-3456-7890-446655440000
c9bf9e57-1685-4c89-bafb-ff5af830be8a and 01234567-0812-3456-7890-012345678901
0x080123456789, 0b01011010, 010 1101 0110
010 110 1011 and 011 0110 0101
00 12 34 56 78 90 11 22 33 44
00 91 98 76 54 32 10 0a 0d
0000-0002-1825-0097 is an ORCID
GTIN 00614141123452, UPC 0 36000 29145 2
4111-0812-3456-7890 1234
IMEI 35-209900-176148-1, VIN 1HGCM82633A004352
0700 0800 0900, the buses of 0812 0915 1030 1145
trains at 0712 0745 0812, open 0900-1700
Section 08-123-456, Part no. 0445110376, part 0 445 110 376
case 08-cv-1234, flight 080 to 5678
RFC 2616, port 8080, 127.0.0.1:8080
192.168.001.002, 10.0.0.1-10.0.0.254
A4 210 297, screen 1920 1080 2560 1440
1 2 3 4 5 6 7 8 9 10 11 12
01 02 03 04 05 06 07 08 09 10
lottery 06 12 34 41 49 and 03 07 19 22 45
0.5 0.25 0.125, 0,1234567
1e+10 2e+10, +5.0 +2.5 +1.25 +0.625
+12.5% +13.4% +14.2% +15.1%
+1 +2 +3 +4 +5 +6 +7 +8 +9
temperatures +20 +21 +22 +23 +24
@@ -120,7 +2345,9 @@ and @@ -1 +20000000 @@
a+b, 12+34567890123
C++2023 and C++17, g++ 13
phone 128 256 512 GB, iPhone 15 256
phones sold: 1200 million, mobile 5000000 users
call 2024-01-02, call 1-2-3-4-5
tel aviv 2024, hotel 12345678 rooms
cell 1234567 times, cell A1 1000000
hotels 1234567, intel 8086 80286 80386
fax machines of 1984, call stack 00007fff12345678
call 0x7fff12345678, phone_id=00012
telephone exchange of 1878 and 1879
SMS 160 characters, SMS of 2024-05-06
mobile first 2015-2020, mobile 3.0.1234567
call number QA76.73.P98 2024
contact 2019-2024, contacts 1234
contact form 7 5.9.2 1234567
zip 02139-4307, 90210-1234, 560001
account 0012345678, 123-45-6789, 078-05-1120
DE89 3704 0044 0532 0130 00
CAS 7732-18-5, EC 231-791-2
PMID 12345678, PMC1234567, arXiv 2404.10830
doi 10.1016/j.cell.2020.02.052, 10.1000/0300-1234567
US 10,123,456 B2, WO 2019/123456
https://example.com/p/0812-3456-7890/x
https://example.com/?id=08031234567
/data/080-1234-5678/file, img_080-1234-5678.png
file-010-1234-5678.tar, id-0300-1234567-x
CVE-2024-12345, KB5034441, JIRA-0800-1234567
model X080-123-4567, sn:A010-1234-5678B
table 100 200 3000, 150 2000 3000
138 0013 8000 and 139 0014 9000 are sums
13800138000 items, 9876543210 is a number
150 1234 5678 rows
98765 43210
12 3456 7890 1234
55 1234 5678 9012
0800 100 200 300
000-0000-0000, 0000 000 0000
1-1-1, 2-2-2, 10-20-30-40
chapter 3-1415-9265
3.14159265358979, 2.718281828459045
1,000,000,000 and 1.000.000.000
0.080-1234
64-bit 9223372036854775807, -2147483648
epoch 1699999999 to 1700009999
between 1990-2000 and 2001-2010
scores 21-15 21-18, 3-6 6-4 7-6
ratio 16:9, 4:3, 21:9
10.10.2010-11.11.2011
4x4 100m 200m, 10k 21k 42k
MAC 00:1A:2B:3C:4D:5E, 00-14-22-01-23-45
Windows 10 19045 22621 22631
Unix mode 0755, 0644 0600, umask 022
octal 0777 0123 0456
RGB 120 130 140, #080123
bible 1-Kings 10-14-21
postal 〒100-0001 東京都, 〒530-0001
2024年03月15日 10時30分, 平成30年
订单号：202403151234567
身份证 110101199003071234
股票 600519 000858
第 0812 3456 号
قیمت ۱۲۳۴۵۶۷۸ تومان
١٥-٠٣-٢٠٢٤ و ٢٠٢٤
Serial 0712 345678 was scrapped.
lot 0803-123-4567-A
train 0912 to 345, gate 678
EAN 5901234123457 and JAN 4901234567894
DOI 10.1109/5.771073, PMCID PMC3531190
timestamp 2023-11-05 08:15:30,123
logs: 0512 0513 0514 0515
hex 07 00 12 34 56 78
parcel 1Z999AA10123456784
flights LH0712 and AF0345 678 seats
grid ref SU 0712 3456
IP 080.123.045.067
bank sort 08-12-34 account 12345678
VAT DE123456789, CNPJ 11.222.333/0001-81, CPF 123.456.789-09
Aadhaar 1234 5678 9012, PAN ABCDE1234F
SSN 078-05-1120, NINO QQ 12 34 56 C
passport 01 23 456789
RUT 12.345.678-5
NIT 900123456-7
INN 7707083893, OGRN 1027700132195
ICD 10 F32.1, NDC 0781-1506-10
tire 205 55 16 91
population 1 412 345 678
1990 2000 2010 2020
0123456789
1234567890
+1-2-3
C+44 20 units
y = x +4.56789012
offset +20000 +30000000
sha256 0912345678
ref: 0300-12-34567
(11) 9 items, (21) 34 lines
section (02) 1234 of the act 5678
zip+4 90210-1234
6-12-2019 to 08-03-2021
8 (916 pages) 123-45-67
Matthew 5-7 10-13 18
ISBN 0712345678
LCCN 08012345
call 911 or 112, dial 100
telephone in 1876, phone 12
Phone 4 costs 19999 rupees
mobile 2G 3G 4G 5G 900 1800
tel 2 1 3
""".strip().split("\n")

#: What is known to be missed.
MISSED = {"HP ⟦9123 4567⟧", "⟦0911 234567⟧", "联系人：王先生 ⟦13912345678⟧", "⟦用户@example.com⟧",
          "⟦jane (at) example⟧", "⟦jane at example.org⟧", "⟦jane @ example.org⟧"}

EMAILS = [
    "⟦jane.doe+tag@sub.example.co.uk⟧", "<⟦o'brien_k@example.ie⟧>", "⟦JANE@EXAMPLE.COM⟧,",
    "mailto:⟦jane@example.org⟧?subject=x", "⟦jane@bücher.example.de⟧", "⟦почта@пример.рф⟧",
    "⟦info@例子.中国⟧", "邮箱：⟦info@例子.中国⟧。", "⟦कमल@उदाहरण.भारत⟧ लिखें", "⟦info@مثال.موقع⟧",
    "⟦jane@회사.한국⟧", "⟦a@xn--e1afmkfd.xn--p1ai⟧", "⟦jane@xn--bcher-kva.de⟧",
    "⟦jane＠example．com⟧", "이메일:⟦jane@example.kr⟧입니다", "联系⟦jane@qq.com⟧请",
    "⟦jane [at] example [dot] org⟧", "⟦jane(at)example.org⟧", "⟦jane at example dot org⟧",
    "author = \"Jane <⟦jane@example.org⟧>\"", "Signed-off-by: Jane <⟦jane@example.org⟧>",
    "⟦用户@example.com⟧", "⟦jane (at) example⟧", "⟦jane at example.org⟧", "⟦jane @ example.org⟧"]

NO_EMAILS = """
git@github.com:oak/lantern.git
git clone ssh://git@gitlab.example.net:2222/oak/core.git
svn+ssh://svn@svn.example.org/repo, ssh://hg@hg.example.org/x
@app.route("/x") and @pytest.mark.full
@functools.lru_cache(maxsize=1), @dataclass.field
q@k.mT / 8 and x@weights.mean + b
A@b.to(device) and h@self.w.sum(dim=0)
y = a @ b.T, W@x.reshape(2)
follow @mira@social.example.org
user@localhost, root@db, me@host
@babel/core@7.22.1, react@18.2.0, vue@next
npm i @types/node@20.1.0 left-pad@1.3.0
pkg:npm/%40angular/core@16.0.0
docker pull repo/image@sha256:abcdef
actions/checkout@v4.1.0 and uses: a/b@main
foo@2x.png, icon@3x.webp
@media (min-width: 600px), @import url(x.css)
@example.com is a domain, @me and @you
look at this dot product, meet at noon
array[at] index [dot] product, x (at) y
printf "%s@%s" user host
12@34.56 and 5@1.99 each
@2.5 GHz, 100@5.0V
arn:aws:iam::aws:policy@v1
SELECT @@version, @x.y := 1
std::at(x).dot(y), a.at(0).dot.b
""".strip().split("\n")

IPS = ["from ⟦93.184.216.34⟧", "host=⟦8.34.208.9⟧:443", "[⟦2606:2800:220:1:248:1893:25c8:1946⟧]",
       "ping ⟦2a00:1450:4001:82a::200e⟧", "client ⟦٩٣.١٨٤.٢١٦.٣٤⟧", "⟦203.0.114.7⟧ - - [10/Oct]"]

NO_IPS = """
127.0.0.1, 10.1.2.3, 192.168.0.1, 172.16.0.9, 0.0.0.0
999.1.1.1, 256.300.1.2, 1.2.3, 1.2.3.4.5
version 14.22.36.81, v14.22.36.81, Version="14.22.36.81"
chrome/99.0.48.51, nginx-14.22.36.81.tar.gz
lib==14.22.36.81 and lib>=14.22.36.81
Oracle 11.2.0.4 and Photoshop CS5 12.0.4.21
org.example:core:14.22.36.81
1.3.6.1.4.1.311.2.1.12 and 2.5.29.17
Section 14.22.36.81, RFC 5445 12.7.3.9
2001:db8::1, fe80::1, ::1, ff02::1
12:30:45, 2024:01:02:03, 1:2:3:4:5:6:7:8
std::vector, dead::beef, Foo::Bar::2a
00:1A:2B:3C:4D:5E, 2a:bc:de:f0:12:34
<Version>14.22.36.81</Version>, AssemblyVersion("14.22.36.81")
upgrade to 84.12.147.125 and firmware: 84.12.147.125
224.0.0.251, 255.255.255.0
""".strip().split("\n")


def _found(text, kind):
    return [text[span.start:span.end] for span in find(text, (kind,))]


def _phones(text):
    return _found(text, "phone")


def _labelled(marked):
    number = marked[marked.index("⟦") + 1:marked.index("⟧")]
    return marked.replace("⟦", "").replace("⟧", ""), number


@pytest.mark.parametrize("country", PHONES)
def test_phones_of_a_country_are_found(country):
    for marked in PHONES[country]:
        text, number = _labelled(marked)
        assert (_phones(text) == [number]) == (marked not in MISSED), text


@pytest.mark.parametrize("kind, marked", [*(("email", one) for one in EMAILS),
                                          *(("ip", one) for one in IPS)])
def test_addresses_are_found(kind, marked):
    text, address = _labelled(marked)
    assert (_found(text, kind) == [address]) == (marked not in MISSED)


@pytest.mark.parametrize("kind, text", [
    *(("phone", one) for one in NO_PHONES), *(("email", one) for one in NO_EMAILS),
    *(("ip", one) for one in NO_IPS)])
def test_what_resembles_them_is_kept(kind, text):
    assert _found(text, kind) == []


def test_digits_of_other_scripts_are_masked():
    text = "هاتف: ٠١٠ ١٢٣٤ ٥٦٧٨"
    assert redaction.apply(text, find(text), {"phone": "mask"})[0] == "هاتف: 000 0000 0000"
