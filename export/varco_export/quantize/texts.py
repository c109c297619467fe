"""Sentences that calibration texts are put together from: prose, talk, instructions, law, science, code and data.

All of them were written for this project. Names, numbers and dates are filled in by `texts_of`, so that no two texts
are alike; what they say is not meant to be true.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable

ENGLISH = (
    "The old harbour smelled of tar and salt, and the boats knocked against one another whenever a ferry "
    "passed. Nobody had repaired the lighthouse since the storm, yet its keeper still climbed the stairs "
    "every evening.",
    'She put the letter down without finishing it. "You knew," she said, "and you let me make a fool of '
    'myself." He looked out of the window, where it had begun to snow, and did not answer.',
    "To make the dough, mix 500 g of flour with a spoonful of salt, add the yeast and the warm water, and "
    "knead it for ten minutes until it no longer sticks. Let it rest under a cloth for an hour, then bake it "
    "at 220 degrees.",
    "Before you open the housing, switch the device off and pull the plug. Loosen the four screws on the "
    "underside, lift the cover, and take care not to touch the contacts. If the lamp stays dark, replace the "
    "fuse by one of the same type.",
    "The tenant may sublet the premises only with the prior written consent of the landlord, which shall not "
    "be withheld unreasonably. This agreement is governed by the laws of the place where the premises lie, "
    "and any amendment hereto must be made in writing and signed by both parties.",
    "No warranty is given, express or implied, including without limitation any warranty of fitness for a "
    "particular purpose. In no event shall the authors be liable for damages arising out of the use of these "
    "materials.",
    "Sea ice reflects most of the sunlight that reaches it, whereas open water absorbs it. When the ice "
    "retreats, the ocean therefore warms faster, which in turn melts more ice; such a loop is called "
    "positive feedback.",
    "A prime number has exactly two divisors. Suppose there were only finitely many of them; multiply them "
    "all and add one. The result leaves a remainder of one when divided by any of them, so it has a prime "
    "factor that was not listed.",
    "The council voted on Tuesday to extend the tram line to the university, with 31 votes in favour and 12 "
    "against. Construction is expected to begin next spring and to cost about 84 million. Residents have "
    "asked for quieter tracks.",
    "Patients who took the medicine slept 42 minutes longer on average (95 % confidence interval 18 to 66), "
    "but reported headaches more often than those in the control group. The authors recommend a longer study.",
    "Thank you for your order. We have received your payment and will dispatch the parcel within two working "
    "days. You can follow it with the number below. If anything is missing or broken, please write to us "
    "within fourteen days.",
    "Our hotel lies five minutes from the station. Breakfast is served from half past six to ten; children "
    "under six stay free of charge. Please note that the lift is out of order until Friday.",
    "In chess, the bishop moves along the diagonals and the rook along ranks and files. A beginner should "
    "develop the knights first, castle early, and avoid moving the same piece twice in the opening.",
    "The empire was not destroyed in a single battle. Taxes had risen for a century, the roads were no "
    "longer safe, and the provinces had learned to govern themselves; when the last emperor fled, few people "
    "noticed.",
    "Install the package with your system's package manager, or build it from source: run ./configure, then "
    "make, then make install as root. Options are described in the file INSTALL. Bugs should be reported "
    "together with the version and a minimal example.",
    "This release fixes a crash on start-up when the configuration file is empty, adds an option to print "
    "times in UTC, and deprecates the flag --legacy, which will be removed in the next major version.",
    "A hash table stores pairs of keys and values so that looking one up takes constant time on average. "
    "Collisions are resolved by chaining or by probing; when the load factor exceeds a threshold, the table "
    "is resized and every key is hashed again.",
    '"Does this train stop at the airport?" "No, you have to change at Central. Platform four, in about '
    'ten minutes." "And is my ticket valid for that?" "As long as you don\'t leave the station, yes."',
    "The picture shows a busy street market on a rainy afternoon. In the foreground a woman with a yellow "
    "umbrella is choosing oranges; behind her, two children share an ice cream, and a sign above the stall "
    "reads FRESH FRUIT.",
    "There are three cups on the table: a white one on the left, which is empty, a blue one in the middle "
    "with a spoon in it, and a small glass on the right. A newspaper lies underneath them.",
    "Photosynthesis turns carbon dioxide and water into sugar and oxygen with the energy of light. It takes "
    "place in the chloroplasts, whose green pigment absorbs mostly red and blue light.",
    "If x + 3 = 11 then x = 8. A train that covers 180 kilometres in one and a half hours travels at 120 "
    "kilometres per hour. The area of a circle with radius 5 is about 78.54 square units.",
    "Permission is given to copy, change and hand on this work, provided that every copy carries this notice "
    "and says which files were changed and when. Nothing in these terms grants a right to use the names or "
    "marks of those who contributed. Where a court finds one clause void, the others remain in force.",
    "NAME\n    sortlines - order the lines of a file\n\nSYNOPSIS\n    sortlines [-r] [-k FIELD] [FILE "
    "...]\n\nDESCRIPTION\n    Reads each FILE, or standard input where none is given, and writes its lines "
    "in order. With -k, lines are compared by the FIELD that is named, counted from one. Exits with 2 if a "
    "file cannot be read.",
    "Version 2.4.1 (unreleased)\n  * The parser no longer loops on an unterminated string; thanks to all who "
    "reported it.\n  * Dropped support for the old configuration format. Run convert-config once before "
    "upgrading.\n  * Fixed a memory leak in the cache when entries are replaced rather than removed.",
    "In 1871 the two villages, until then divided by the river, voted to share a school, a fire engine and "
    "the cost of a bridge. The bridge was swept away twice; the third, of iron, still stands, though since "
    "the flood of 1954 only walkers may cross it.",
    "Dear Ms Novak, thank you for your letter of 3 May. We are sorry to hear that the parcel reached you "
    "damaged. A new one will leave our warehouse tomorrow; please keep the old one until the carrier has "
    "collected it. Yours sincerely,",
    "The heart has four chambers. Blood that is poor in oxygen enters the right atrium, passes into the "
    "right ventricle and is pumped to the lungs; it returns to the left atrium and is driven by the left "
    "ventricle through the whole body.",
    "Q: Why does my build fail with an undefined reference?\nA: The linker reads libraries from left to "
    "right, so a library must come after whatever uses it. Put -lm at the end of the command, or list the "
    "object files first.",
    "I had expected more of this hotel. The room was clean and the view of the bay splendid, but the walls "
    "are thin, breakfast ended at nine, and nobody at the desk knew when the next bus would leave. Two stars "
    "out of five.",
    "Theorem. Every bounded sequence of real numbers has a convergent subsequence. Proof. Halve the interval "
    "that contains the sequence; one of the halves contains infinitely many of its terms. Repeat with that "
    "half, and choose from each interval a term that comes later than those chosen before.",
    "12:04:17 INFO  server: listening on port 8080\n12:04:21 WARN  pool: 3 of 16 connections are stale, "
    "reconnecting\n12:05:02 ERROR worker-7: request 5f3a timed out after 30000 ms (retry 2 of 3)\n12:05:03 "
    "INFO  worker-7: recovered",
    "Whoever rents the boat shall return it to the same pier before dusk, cleaned and with a full tank. "
    "Damage is to be reported at once, and in writing; the deposit is paid back within fourteen days, less "
    "the cost of any repair.",
    "Interest rates were left unchanged, the bank said on Thursday, because inflation had slowed to 2.3 "
    "percent while wages rose faster than expected. Analysts had been divided; the currency lost a little "
    "against the dollar.",
)
KOREAN = (
    "오래된 항구에는 소금 냄새가 났고, 여객선이 지나갈 때마다 배들이 서로 부딪쳤다. 폭풍이 지나간 뒤로 "
    "등대를 고친 사람은 없었지만 등대지기는 매일 저녁 계단을 올랐다.",
    '그녀는 편지를 끝까지 읽지 않고 내려놓았다. "알고 있었잖아요." 그는 눈이 내리기 시작한 창밖을 바라볼 '
    "뿐 아무 대답도 하지 않았다.",
    "먼저 냄비에 물을 붓고 멸치와 다시마로 육수를 냅니다. 끓기 시작하면 다시마를 건져 내고 된장을 풀어 넣은 "
    "다음, 감자와 두부, 애호박을 넣고 십오 분쯤 더 끓이세요.",
    "제품을 열기 전에 반드시 전원을 끄고 플러그를 뽑으십시오. 밑면의 나사 네 개를 푼 뒤 덮개를 들어 올리고, "
    "접점에 손이 닿지 않도록 주의하십시오.",
    "임차인은 임대인의 서면 동의 없이 이 사건 부동산을 전대할 수 없다. 이 계약에 정하지 아니한 사항은 관계 "
    "법령과 일반 관례에 따르며, 계약의 변경은 서면으로 하여야 한다.",
    "시의회는 화요일 본회의에서 전철 노선을 대학까지 연장하는 안을 찬성 31표, 반대 12표로 의결했다. 공사는 "
    "내년 봄에 시작되며 약 840억 원이 들 것으로 보인다.",
    "물은 섭씨 0도에서 얼고 100도에서 끓는다. 압력이 낮아지면 끓는점도 낮아지기 때문에 높은 산에서는 밥이 설익기 쉽다.",
    "조선 시대의 한양은 네 개의 큰 문과 네 개의 작은 문으로 둘러싸여 있었다. 성곽을 따라 걸으면 지금도 옛 "
    "도시의 모습을 짐작할 수 있다.",
    "안녕하세요, 주문하신 상품이 오늘 발송되었습니다. 배송은 보통 이틀 정도 걸리며, 파손된 물건이 있으면 "
    "십사 일 이내에 고객 센터로 연락해 주시기 바랍니다.",
    '"이 버스가 공항까지 가나요?" "아니요, 시청 앞에서 갈아타셔야 해요. 4번 정류장에서 십 분마다 '
    '옵니다." "감사합니다. 요금은 얼마예요?" "천오백 원입니다."',
    "사진에는 비 오는 오후의 시장 거리가 보입니다. 앞쪽에서는 노란 우산을 쓴 여성이 귤을 고르고 있고, 그 "
    "뒤에는 두 아이가 아이스크림을 나누어 먹고 있습니다.",
    "탁자 위에는 컵이 세 개 놓여 있습니다. 왼쪽의 흰 컵은 비어 있고, 가운데 파란 컵에는 숟가락이 꽂혀 "
    "있으며, 오른쪽에는 작은 유리잔이 있습니다.",
    "프로그램을 설치하려면 설정 파일을 먼저 복사한 다음 명령을 실행하세요. 오류가 발생하면 버전과 함께 재현 "
    "방법을 적어 보고해 주십시오.",
    "해시 테이블은 키와 값의 쌍을 저장하며 평균적으로 상수 시간에 원하는 값을 찾는다. 충돌이 일어나면 "
    "체이닝이나 탐사로 해결한다.",
    "운동을 시작하기 전에는 가벼운 준비 운동으로 몸을 풀어 주는 것이 좋다. 처음에는 하루 이십 분씩 걷고, "
    "익숙해지면 조금씩 시간을 늘려 보자.",
    "이번 분기 매출은 지난해 같은 기간보다 7.4% 늘어난 3조 2천억 원을 기록했다. 회사 측은 해외 수요가 늘고 "
    "환율이 안정된 덕분이라고 설명했다.",
    "본 소프트웨어는 있는 그대로 제공되며, 상품성이나 특정 목적에 대한 적합성을 포함하여 어떠한 보증도 하지 "
    "않습니다. 사본에는 이 고지를 그대로 두어야 합니다.",
    "1950년대에 지어진 이 역은 한때 하루에 수천 명이 오가던 곳이었다. 지금은 승강장 하나만 남아 있고, "
    "대합실은 작은 도서관으로 쓰인다.",
    "질문: 비밀번호를 잊어버렸는데 어떻게 해야 하나요? 답변: 로그인 화면에서 '비밀번호 찾기'를 누르고 가입할 "
    "때 쓴 전자우편 주소를 입력하세요. 몇 분 안에 안내 메일이 도착합니다.",
    "심장은 네 개의 방으로 이루어져 있다. 온몸을 돌고 온 피는 우심방으로 들어가 우심실을 거쳐 폐로 보내지고, "
    "산소를 얻은 피는 다시 좌심방으로 돌아온다.",
    "방은 깨끗하고 창밖 풍경도 좋았지만 벽이 얇아서 옆방 소리가 다 들렸습니다. 아침 식사가 아홉 시에 끝나는 "
    "점도 아쉬웠어요. 다시 묵을지는 모르겠습니다.",
    "도로교통 안내: 내일 오전 여섯 시부터 시청 앞 사거리의 차로가 통제됩니다. 우회 도로를 이용하시고, "
    "대중교통을 타실 분은 2호선을 이용해 주시기 바랍니다.",
)
CODE = (
    "def median(values):\n    ordered = sorted(values)\n    middle = len(ordered) // 2\n    if len(ordered) "
    "% 2:\n        return ordered[middle]\n    return (ordered[middle - 1] + ordered[middle]) / 2\n",
    "#include <stdio.h>\n\nint main(int argc, char **argv) {\n    for (int i = 1; i < argc; i++)\n        "
    'printf("%d: %s\\n", i, argv[i]);\n    return 0;\n}\n',
    "SELECT city, COUNT(*) AS shops, AVG(sales) FROM stores WHERE opened >= '2019-01-01' GROUP BY city ORDER "
    "BY 3 DESC;\n",
    'for file in *.log; do\n    gzip -9 "$file" && mv "$file.gz" archive/ || echo "cannot pack $file" >&2\ndone\n',
    "my ($name, %options) = @_;\nreturn unless defined $name && length $name;\n$options{depth} //= 1;\nprint "
    'join(", ", map { "$_=$options{$_}" } sort keys %options), "\\n";\n',
    '<ul class="menu">\n  <li><a href="/about">About us</a></li>\n  <li><a href="/contact">Contact</a></li>\n</ul>\n',
    'class Cache:\n    """Keep the values that were asked for last."""\n\n    def __init__(self, '
    "limit=128):\n        self._limit = limit\n        self._items = {}\n\n    def get(self, key, "
    "default=None):\n        if key not in self._items:\n            return default\n        value = "
    "self._items.pop(key)\n        self._items[key] = value\n        return value\n",
    "function debounce(fn, delay = 200) {\n  let timer = null;\n  return (...args) => {\n    "
    "clearTimeout(timer);\n    timer = setTimeout(() => fn(...args), delay);\n  };\n}\n\nexport const "
    "onResize = debounce(() => layout(window.innerWidth));\n",
    "sub read_table {\n    my ($path) = @_;\n    open(my $file, '<', $path) or die \"cannot open $path: "
    '$!\\n";\n    my @rows;\n    while (my $line = <$file>) {\n        chomp $line;\n        next if $line '
    "=~ /^\\s*(#|$)/;   # comments and empty lines\n        push @rows, [split /\\t/, $line];\n    }\n    "
    "close $file;\n    return \\@rows;\n}\n",
    "static int insert(struct tree **root, int key)\n{\n\tstruct tree **at = root;\n\n\twhile (*at) {\n\t\tif "
    "((*at)->key == key)\n\t\t\treturn 0;\n\t\tat = key < (*at)->key ? &(*at)->left : &(*at)->right;\n\t}\n\t*at = "
    "calloc(1, sizeof **at);\n\tif (!*at)\n\t\treturn -ENOMEM;\n\t(*at)->key = key;\n\treturn 1;\n}\n",
    "async def fetch_all(session, urls, limit=8):\n    gate = asyncio.Semaphore(limit)\n\n    async def "
    "one(url):\n        async with gate:\n            response = await session.get(url)\n            "
    "response.raise_for_status()\n            return await response.json()\n\n    return await "
    "asyncio.gather(*(one(url) for url in urls), return_exceptions=True)\n",
    '[package]\nname = "weather-station"\nversion = "0.3.0"\n\n[dependencies]\nserde = { version = '
    '"1", features = ["derive"] }\n\n[profile.release]\nlto = true\n',
)
WORDS = str.split(
    "river paper window engine garden letter stone market winter silver bridge ticket coffee signal mirror "
    "camera doctor island summer lesson copper orange ladder kitchen bottle forest pencil harbor museum "
    "rocket basket candle planet"
)
KOREAN_WORDS = str.split(
    "강 종이 창문 기차 정원 편지 시장 겨울 다리 표 커피 신호 거울 의사 섬 여름 수업 사다리 부엌 병 숲 연필 "
    "항구 박물관 바구니 촛불 행성 학교 친구 음악 도서관 바다 우산 은행 약국 출구 비상구 주차장 화장실 안내소 "
    "영업시간 할인"
)
NAMES = ("Mina Park", "Jonas Weber", "Amara Obi", "이서연", "김민준", "Lucía Torres", "Wei Zhang", "박지훈")


def texts_of(rng: random.Random, num_passages: int) -> str:
    """Return a text of passages in both languages, code and data, in an order of its own."""
    makers: tuple[Callable[[random.Random], str], ...] = (
        lambda rng: rng.choice(ENGLISH),
        lambda rng: rng.choice(ENGLISH),
        lambda rng: rng.choice(ENGLISH),
        lambda rng: rng.choice(KOREAN),
        lambda rng: rng.choice(KOREAN),
        lambda rng: rng.choice(CODE),
        lambda rng: rng.choice(CODE),
        _sentences,
        _table,
        _record,
        _list,
    )
    return "\n\n".join(rng.choice(makers)(rng) for _ in range(num_passages))


def _sentences(rng: random.Random) -> str:
    """Return sentences cut out of several passages: every half belongs to another thought."""
    bank = KOREAN if rng.random() < 0.3 else ENGLISH
    parts = [rng.choice(rng.choice(bank).split(". ")) for _ in range(4)]
    return ". ".join(parts) + "."


def _table(rng: random.Random) -> str:
    rows = [
        f"| {rng.choice(WORDS)} | {rng.randint(1, 999)} | {rng.uniform(0, 100):.2f} |" for _ in range(rng.randint(2, 6))
    ]
    return "\n".join(["| name | count | price |", "|---|---|---|", *rows])


def _record(rng: random.Random) -> str:
    day = f"20{rng.randint(10, 29)}-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}"
    fields = {"id": rng.randint(1000, 99999), "name": rng.choice(NAMES), "date": day, "tags": rng.sample(WORDS, 3)}
    return json.dumps(fields, ensure_ascii=False, indent=rng.choice([None, 2]))


def _list(rng: random.Random) -> str:
    words = KOREAN_WORDS if rng.random() < 0.4 else WORDS
    return "\n".join(f"{number}. {rng.choice(words)}, {rng.choice(words)}" for number in range(1, rng.randint(4, 9)))
