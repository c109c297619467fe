"""What the pictures can say: the characters, the lexicon, and the shapes and colours.

Half of the words come from the lexicon below, half are random strings of one script, so that a reader must really
look at every character. Strings never mix letters and digits: O and 0 are told apart by their neighbours, as on signs.
"""

LATIN = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
DIGITS = "0123456789"

LATIN_WORDS = tuple(
    """OPEN CLOSED STOP EXIT ENTRY SALE HOTEL CAFE COFFEE TEA BAR TAXI BUS TRAIN METRO PARK ZOO MUSEUM BANK ATM CASH
    SHOP MARKET BOOKS MUSIC PIZZA BURGER BREAD CAKE FRESH JUICE WATER MILK FISH RICE NOODLE SOUP FOOD DINER GRILL
    PUSH PULL FREE WIFI TICKET GATE PLATFORM LIFT STAIRS UP DOWN LEFT RIGHT NORTH SOUTH EAST WEST CITY TOWN ROAD
    STREET BRIDGE RIVER LAKE SEA BEACH HILL SLOW FAST DANGER NO YES SMOKE QUIET ZONE SCHOOL CLASS LAB CLINIC DOCTOR
    PHONE CALL HELP INFO POST MAIL HOME ROOM FLOOR KEY LOCK SAFE FIRE POLICE KOREA SEOUL BUSAN VISIT WELCOME HELLO
    THANKS GOOD DAY NIGHT SUN MOON STAR RED BLUE GREEN GOLD BLACK WHITE BIG SMALL HOT COLD NEW OLD TOP BEST GIFT TOYS
    GAME PLAY WORK TIME WEEK YEAR KIDS MEN WOMEN BABY FAMILY LOVE JAZZ ROCK DANCE FILM PHOTO ART VARCO EDGE QUICK
    BOX FOX JUMP VAN WAY EXPRESS OFFICE GARDEN KITCHEN PEACE MUD QUEEN KING UNIT VIEW WAX XRAY YARD ZERO""".split()
)

HANGUL_WORDS = tuple(
    """서울 부산 대구 인천 광주 대전 제주 강남 종로 수원 대한 한국 중국 영어 국어 수학 과학 미술 음악 학교 대학 학생 병원
    약국 은행 시장 공원 도서 도로 지하 전철 버스 택시 주차 금지 출구 입구 안내 전화 사랑 가게 식당 음식 우유 사과 바나나 나무
    나라 하나 다리 고기 오리 소리 미소 무료 여행 호텔 우리 사람 시간 오늘 내일 아침 저녁 여름 가을 하늘 바다 산길 강물
    물고기 불꽃 집안 책방 꽃집 달 해 눈 비 구름 화장실 비상구 주차장 지하철 정류장 시청 문화 회사 사장 의자 기차 자동차 커피
    우산 신문 편지 주소 이름 나이 어머니 아버지 아이 여자 남자 친구 선생 운동 축구 야구 농구 수영 영화 공기 전기""".split()
)

SYLLABLES = "".join(sorted({syllable for word in HANGUL_WORDS for syllable in word}))

CHARACTERS = LATIN + DIGITS + SYLLABLES

SHAPES = ("circle", "square", "triangle", "diamond", "star")

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 32, 38),
    "green": (34, 150, 60),
    "blue": (30, 80, 210),
    "yellow": (245, 215, 30),
    "orange": (245, 130, 20),
    "purple": (130, 40, 160),
    "black": (20, 20, 20),
    "white": (245, 245, 245),
}

NUMBER_WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight")
