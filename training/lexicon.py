"""What the pictures can say: the characters, the lexicon, and the shapes and colours.

Half of the words come from the lexicon below, half are random strings of one script, so that a reader must really
look at every character. Strings never mix letters and digits: O and 0 are told apart by their neighbours, as on signs.
"""

LATIN = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
DIGITS = "0123456789"

LATIN_WORDS = tuple(
    """
    OPEN CLOSED STOP EXIT ENTRY SALE HOTEL CAFE COFFEE TEA BAR TAXI BUS TRAIN METRO PARK ZOO MUSEUM BANK ATM CASH
    SHOP MARKET BOOKS MUSIC PIZZA BURGER BREAD CAKE FRESH JUICE WATER MILK FISH RICE NOODLE SOUP FOOD DINER GRILL
    PUSH PULL FREE WIFI TICKET GATE PLATFORM LIFT STAIRS UP DOWN LEFT RIGHT NORTH SOUTH EAST WEST CITY TOWN ROAD
    STREET BRIDGE RIVER LAKE SEA BEACH HILL SLOW FAST DANGER NO YES SMOKE QUIET ZONE SCHOOL CLASS LAB CLINIC DOCTOR
    PHONE CALL HELP INFO POST MAIL HOME ROOM FLOOR KEY LOCK SAFE FIRE POLICE KOREA SEOUL BUSAN VISIT WELCOME HELLO
    THANKS GOOD DAY NIGHT SUN MOON STAR RED BLUE GREEN GOLD BLACK WHITE BIG SMALL HOT COLD NEW OLD TOP BEST GIFT
    TOYS GAME PLAY WORK TIME WEEK YEAR KIDS MEN WOMEN BABY FAMILY LOVE JAZZ ROCK DANCE FILM PHOTO ART VARCO EDGE
    QUICK BOX FOX JUMP VAN WAY EXPRESS OFFICE GARDEN KITCHEN PEACE MUD QUEEN KING UNIT VIEW WAX XRAY YARD ZERO
    """.split()  # noqa: SIM905
)

HANGUL_WORDS = tuple(
    """
    서울 부산 대구 대전 제주 강남 수원 대한 한국 영어 국어 수학 과학 학교 대학 병원 시장 공원 지하 전철
    주차 금지 출구 입구 전화 사랑 사과 바나나 나무 나라 하나 다리 고기 오리 소리 우리 사람 오늘 여름 하늘
    바다 강물 물고기 달 해 눈 비 구름 화장실 주차장 지하철 회사 사장 기차 커피 우산 주소 이름 나이 여자
    남자 친구 축구 야구 농구 수영 영화 공기 전기
    """.split()  # noqa: SIM905
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
