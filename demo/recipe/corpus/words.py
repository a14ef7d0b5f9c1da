# ruff: noqa: E501 (tables of words read best in long lines)
"""Word lists of the corpus, English and Chinese side by side where both exist."""

from __future__ import annotations


def _split(text: str) -> list[str]:
    return [w.replace("_", " ") for w in text.split()]


def _rows(text: str) -> list[tuple[str, ...]]:
    """Reads rows such as `Hong_Kong/香港`."""
    return [tuple(row.replace("_", " ").split("/")) for row in text.split()]


FIRST_NAMES = _split("""
Alice Bob Carol David Emma Frank Grace Henry Iris Jack Karen Leo Maria Nina Oscar Paula Quinn Rosa Sam Tina Uma Victor
Wendy Xavier Yara Zoe Adam Bella Carlos Diana Eric Fiona George Hannah Ivan Julia Kevin Laura Martin Nora Olivia Peter
Rachel Simon Teresa Ursula Vera Walter Anna Ben Chloe Daniel Elena Felix Gina Hugo Ines James Kate Liam Mia Noah Omar
Priya Ravi Sofia Thomas Viktor Will Yuki Amir Bruno Clara Dennis Ella Fred Gabriel Helen Isaac Jonas Kira Lucas Marta
Nadia Otto Petra Robert Stella Theo Vincent Wanda Aisha Boris Celia Derek Eva Farid Greta Harold Ingrid Joel Keiko
Lars Mona Nils Olga Pablo Ruth Sven Tara Yusuf Zara Lily Max Ruby Tom Lucy Mark John Mary Mike Jane Anton Kenji
""")
LAST_NAMES = _split("""
Smith Johnson Brown Taylor Miller Wilson Moore Clark Lewis Walker Hall Young King Wright Hill Green Baker Adams Nelson
Carter Mitchell Turner Parker Evans Collins Stewart Morris Rogers Reed Cook Bell Murphy Cooper Ward Gray Watson Brooks
Kelly Price Wood Ross Barnes Fisher Stone Chen Wang Kumar Patel Singh Garcia Lopez Rossi Silva Costa Novak Kowalski
Muller Schmidt Weber Fischer Jensen Hansen Larsen Ivanov Petrov Tanaka Sato Suzuki Kim Park Nguyen Ahmed Hassan Ali
Dubois Laurent Moreau Bernard Bianchi Romano Santos Mendes Vargas Cruz Flores Ortega Berg Lind Holm Dahl Okafor Mensah
""")
ZH_SURNAMES = "王李张刘陈杨赵黄周吴徐孙胡朱高林何郭马罗梁宋郑谢韩唐冯于董萧程曹袁邓许傅沈曾彭吕苏卢蒋蔡贾丁魏薛叶阎余潘杜戴夏钟汪田任姜范方石姚谭廖邹熊金陆郝孔白崔康毛邱秦江史顾侯邵孟龙万段雷钱汤尹黎易常武乔贺赖龚文"
ZH_GIVEN = "明华丽强芳伟军敏静磊洋艳勇杰娟涛超霞平刚桂英玉兰萍红梅建国文斌宇浩然子轩梓涵欣怡佳琪雨桐思远晓东海燕春生志鹏俊峰雪莲婷婷晨阳天佑安琪乐瑶诗雅博睿泽凯嘉慧心悦小龙家豪美玲立新振宁学友德华"
CITIES = _rows("""
Beijing/北京 Shanghai/上海 Guangzhou/广州 Shenzhen/深圳 Hangzhou/杭州 Chengdu/成都 Wuhan/武汉 Nanjing/南京 Tianjin/天津
Chongqing/重庆 Suzhou/苏州 Xiamen/厦门 Qingdao/青岛 Dalian/大连 Kunming/昆明 Changsha/长沙 Harbin/哈尔滨 Lhasa/拉萨
Sanya/三亚 Guilin/桂林 Hong_Kong/香港 Taipei/台北 Macau/澳门 Tokyo/东京 Osaka/大阪 Kyoto/京都 Seoul/首尔 Busan/釜山
Bangkok/曼谷 Singapore/新加坡 Hanoi/河内 Jakarta/雅加达 Manila/马尼拉 Delhi/德里 Mumbai/孟买 Dubai/迪拜 Istanbul/伊斯坦布尔
Cairo/开罗 Nairobi/内罗毕 Lagos/拉各斯 London/伦敦 Paris/巴黎 Berlin/柏林 Munich/慕尼黑 Hamburg/汉堡 Rome/罗马 Milan/米兰
Venice/威尼斯 Madrid/马德里 Barcelona/巴塞罗那 Lisbon/里斯本 Vienna/维也纳 Prague/布拉格 Warsaw/华沙 Budapest/布达佩斯
Athens/雅典 Dublin/都柏林 Amsterdam/阿姆斯特丹 Brussels/布鲁塞尔 Zurich/苏黎世 Geneva/日内瓦 Oslo/奥斯陆 Stockholm/斯德哥尔摩
Copenhagen/哥本哈根 Helsinki/赫尔辛基 Moscow/莫斯科 New_York/纽约 Boston/波士顿 Chicago/芝加哥 Seattle/西雅图 Denver/丹佛
Houston/休斯顿 Dallas/达拉斯 Miami/迈阿密 San_Francisco/旧金山 Los_Angeles/洛杉矶 Toronto/多伦多 Vancouver/温哥华
Montreal/蒙特利尔 Mexico_City/墨西哥城 Lima/利马 Santiago/圣地亚哥 Sydney/悉尼 Melbourne/墨尔本 Perth/珀斯 Auckland/奥克兰
Austin/奥斯汀 Portland/波特兰 Atlanta/亚特兰大 Phoenix/凤凰城 Oxford/牛津 Leeds/利兹 Lyon/里昂 Porto/波尔图 Krakow/克拉科夫
Xi'an/西安 Zhengzhou/郑州 Jinan/济南 Ningbo/宁波 Fuzhou/福州 Hefei/合肥 Guiyang/贵阳 Urumqi/乌鲁木齐 Lanzhou/兰州
""")
COUNTRIES = _rows("""
France/Paris/法国/巴黎 Germany/Berlin/德国/柏林 Italy/Rome/意大利/罗马 Spain/Madrid/西班牙/马德里 Japan/Tokyo/日本/东京
China/Beijing/中国/北京 India/New_Delhi/印度/新德里 Russia/Moscow/俄罗斯/莫斯科 Egypt/Cairo/埃及/开罗 Greece/Athens/希腊/雅典
Portugal/Lisbon/葡萄牙/里斯本 Austria/Vienna/奥地利/维也纳 Poland/Warsaw/波兰/华沙 Norway/Oslo/挪威/奥斯陆
Sweden/Stockholm/瑞典/斯德哥尔摩 Denmark/Copenhagen/丹麦/哥本哈根 Finland/Helsinki/芬兰/赫尔辛基 Ireland/Dublin/爱尔兰/都柏林
Belgium/Brussels/比利时/布鲁塞尔 Hungary/Budapest/匈牙利/布达佩斯 Canada/Ottawa/加拿大/渥太华 Mexico/Mexico_City/墨西哥/墨西哥城
Brazil/Brasilia/巴西/巴西利亚 Peru/Lima/秘鲁/利马 Chile/Santiago/智利/圣地亚哥 Cuba/Havana/古巴/哈瓦那 Kenya/Nairobi/肯尼亚/内罗毕
Thailand/Bangkok/泰国/曼谷 Vietnam/Hanoi/越南/河内 Turkey/Ankara/土耳其/安卡拉 Australia/Canberra/澳大利亚/堪培拉
Argentina/Buenos_Aires/阿根廷/布宜诺斯艾利斯 Indonesia/Jakarta/印度尼西亚/雅加达 Iran/Tehran/伊朗/德黑兰 Iraq/Baghdad/伊拉克/巴格达
South_Korea/Seoul/韩国/首尔 Malaysia/Kuala_Lumpur/马来西亚/吉隆坡 Nepal/Kathmandu/尼泊尔/加德满都 Ukraine/Kyiv/乌克兰/基辅
Switzerland/Bern/瑞士/伯尔尼 Iceland/Reykjavik/冰岛/雷克雅未克 Netherlands/Amsterdam/荷兰/阿姆斯特丹
""")  # country, capital, and both in Chinese
LANGUAGES = _rows("""English/英语 French/法语 German/德语 Spanish/西班牙语 Italian/意大利语 Japanese/日语 Korean/韩语 Chinese/中文
Russian/俄语 Portuguese/葡萄牙语 Arabic/阿拉伯语 Dutch/荷兰语 Greek/希腊语 Thai/泰语 Turkish/土耳其语 Polish/波兰语""")
CURRENCIES = _rows("""USD/US_dollars/美元 EUR/euros/欧元 GBP/British_pounds/英镑 JPY/yen/日元 CNY/yuan/人民币 KRW/won/韩元 INR/rupees/卢比
CHF/Swiss_francs/瑞士法郎 CAD/Canadian_dollars/加元 AUD/Australian_dollars/澳元 HKD/Hong_Kong_dollars/港币 SGD/Singapore_dollars/新加坡元""")
COLORS = _rows("red/红色 blue/蓝色 green/绿色 yellow/黄色 orange/橙色 purple/紫色 black/黑色 white/白色 pink/粉色 brown/棕色 gray/灰色 gold/金色")
ANIMALS = _rows("""cat/猫 dog/狗 rabbit/兔子 fox/狐狸 bear/熊 bird/小鸟 mouse/老鼠 horse/马 lion/狮子 tiger/老虎 elephant/大象 panda/熊猫 monkey/猴子
owl/猫头鹰 frog/青蛙 duck/鸭子 turtle/乌龟 wolf/狼 sheep/羊 cow/牛 pig/猪 penguin/企鹅 dolphin/海豚 whale/鲸鱼 hamster/仓鼠 goat/山羊""")
FRUITS = _rows("""apples/苹果 bananas/香蕉 oranges/橙子 pears/梨 grapes/葡萄 peaches/桃子 plums/李子 cherries/樱桃 lemons/柠檬 mangoes/芒果
strawberries/草莓 kiwis/猕猴桃 melons/甜瓜 pineapples/菠萝 coconuts/椰子""")
GOODS = _rows("""milk/牛奶 eggs/鸡蛋 bread/面包 rice/大米 flour/面粉 sugar/糖 salt/盐 butter/黄油 cheese/奶酪 coffee/咖啡 tea/茶 chicken/鸡肉 beef/牛肉
fish/鱼 tomatoes/西红柿 potatoes/土豆 onions/洋葱 carrots/胡萝卜 noodles/面条 tofu/豆腐 soap/肥皂 paper/纸 pencils/铅笔 batteries/电池
candles/蜡烛 towels/毛巾 shampoo/洗发水 honey/蜂蜜 yogurt/酸奶 mushrooms/蘑菇 garlic/大蒜 pepper/胡椒 olive_oil/橄榄油 water/水 juice/果汁""")
PRODUCTS = _rows("""laptop/笔记本电脑 phone/手机 headphones/耳机 camera/相机 keyboard/键盘 monitor/显示器 backpack/背包 jacket/夹克 desk_lamp/台灯 office_chair/办公椅
water_bottle/水杯 tent/帐篷 bicycle/自行车 watch/手表 printer/打印机 tablet/平板电脑 running_shoes/跑鞋 umbrella/雨伞 guitar/吉他 microwave/微波炉
novel/小说 blender/搅拌机 sofa/沙发 mattress/床垫 router/路由器 speaker/音箱 wallet/钱包 suitcase/行李箱 sunglasses/太阳镜 vacuum_cleaner/吸尘器""")
DISHES = _rows("""pizza/披萨 sushi/寿司 ramen/拉面 tacos/墨西哥卷饼 curry/咖喱 dumplings/饺子 pasta/意大利面 salad/沙拉 fried_rice/炒饭 hot_pot/火锅 pancakes/煎饼
soup/汤 steak/牛排 burgers/汉堡 lasagna/千层面 pho/河粉 kebab/烤肉 roast_duck/烤鸭 mapo_tofu/麻婆豆腐 apple_pie/苹果派 spring_rolls/春卷 risotto/烩饭""")
ADJECTIVES = _split("""
new old quick quiet bright blue red green golden silver urgent weekly monthly daily annual final draft public private
small large simple modern classic early late open hidden lost frozen broken happy lucky brave gentle wild warm cold
northern southern eastern western secret special important short long spring summer autumn winter digital global local
""")
NOUNS = _split("""
report meeting project plan budget review lunch party trip garden market river mountain window bridge engine planet
music photo letter ticket account invoice contract survey lesson course exam library museum station airport hotel
kitchen bedroom office team client customer order package delivery payment design research training workshop interview
story recipe movie song book game puzzle map street tower island forest desert ocean storm harvest festival wedding
birthday concert race match season ticket signal sensor battery cable server database website backup update release
""")
ZH_TOPICS = _split("""
季度报告 项目计划 团队聚餐 生日聚会 年度预算 客户会议 产品发布 春节活动 周末旅行 读书笔记 健身计划 考试复习 面试安排 家庭聚会 合同审核
系统升级 数据备份 员工培训 市场调研 音乐会 人工智能 机器学习 太阳能 新能源汽车 气候变化 量子计算 长城 故宫 红楼梦 三国演义 西游记 唐诗
宋词 茶文化 京剧 中医 书法 围棋 太极拳 航天 高铁 大熊猫 深海探索 环境保护 健康饮食 睡眠质量 儿童教育 城市规划 股票市场 世界杯 奥运会
""")
EN_TOPICS = _split("""
artificial_intelligence machine_learning solar_energy electric_cars climate_change quantum_computing the_Great_Wall
jazz_music black_holes ancient_Rome world_cup healthy_eating deep_sea_exploration renewable_energy data_privacy
remote_work space_travel modern_art chess_openings coffee_history bird_watching home_gardening marathon_training
the_French_Revolution cell_biology volcano_eruptions stock_markets video_games dinosaurs photography robotics
""")
COMPANIES = _rows("""Apple/AAPL/苹果公司 Microsoft/MSFT/微软 Tesla/TSLA/特斯拉 Amazon/AMZN/亚马逊 Google/GOOG/谷歌 Netflix/NFLX/奈飞 Nvidia/NVDA/英伟达
Intel/INTC/英特尔 Alibaba/BABA/阿里巴巴 Sony/SONY/索尼 Toyota/TM/丰田 Boeing/BA/波音 Disney/DIS/迪士尼 Nike/NKE/耐克 Pfizer/PFE/辉瑞 Oracle/ORCL/甲骨文""")
ROOMS = _rows("kitchen/厨房 living_room/客厅 bedroom/卧室 bathroom/浴室 garage/车库 office/书房 hallway/走廊 balcony/阳台 basement/地下室 garden/花园")
DEVICES = _rows("lights/灯 heater/暖气 fan/风扇 air_conditioner/空调 TV/电视 coffee_machine/咖啡机 door/门 curtains/窗帘 speaker/音箱 humidifier/加湿器 dishwasher/洗碗机 oven/烤箱")
SONGS = _split("""Yellow_River Moonlight Blue_Sky Silent_Night Golden_Hour Summer_Rain Let_It_Go Yesterday Imagine Fireflies Paper_Moon
Wild_Horses Night_Train Ocean_Drive Red_Lantern Hello Skyfall Dreams""")
ZH_SONGS = _split(
    "青花瓷 稻香 晴天 夜曲 七里香 童话 月亮代表我的心 海阔天空 后来 红豆 平凡之路 小幸运 成都 南山南 茉莉花"
)
HOBBIES = _rows("""reading/读书 swimming/游泳 hiking/徒步 painting/画画 cooking/做饭 dancing/跳舞 fishing/钓鱼 running/跑步 singing/唱歌 gardening/园艺
chess/下棋 photography/摄影 cycling/骑车 yoga/瑜伽 skiing/滑雪 tennis/网球 football/足球 basketball/篮球 knitting/编织 traveling/旅行""")
JOBS = _rows("""teacher/老师 doctor/医生 nurse/护士 engineer/工程师 farmer/农民 writer/作家 painter/画家 pilot/飞行员 chef/厨师 lawyer/律师 baker/面包师
musician/音乐家 student/学生 driver/司机 scientist/科学家 designer/设计师 firefighter/消防员 dentist/牙医 actor/演员 carpenter/木匠""")
FOODS = DISHES + FRUITS
WEEKDAYS = _rows("Monday/星期一 Tuesday/星期二 Wednesday/星期三 Thursday/星期四 Friday/星期五 Saturday/星期六 Sunday/星期日")
MONTHS = _split("January February March April May June July August September October November December")
NUMBER_WORDS = _split("zero one two three four five six seven eight nine ten eleven twelve")
ZH_NUMBER_WORDS = _split("零 一 两 三 四 五 六 七 八 九 十 十一 十二")
DICTIONARY = _rows("""water/水 fire/火 sun/太阳 moon/月亮 star/星星 book/书 tree/树 flower/花 house/房子 school/学校 friend/朋友 mother/妈妈 father/爸爸
teacher/老师 student/学生 doctor/医生 food/食物 rice/米饭 tea/茶 milk/牛奶 apple/苹果 cat/猫 dog/狗 bird/鸟 fish/鱼 horse/马 mountain/山 river/河
sea/海 rain/雨 snow/雪 wind/风 spring/春天 summer/夏天 autumn/秋天 winter/冬天 today/今天 tomorrow/明天 yesterday/昨天 morning/早上 night/晚上
happy/快乐 sad/难过 big/大 small/小 good/好 bad/坏 hot/热 cold/冷 red/红色 blue/蓝色 green/绿色 white/白色 black/黑色 car/汽车 train/火车
airplane/飞机 city/城市 country/国家 love/爱 hello/你好 thanks/谢谢 goodbye/再见 computer/电脑 phone/电话 music/音乐 movie/电影 door/门
window/窗户 table/桌子 chair/椅子 bread/面包 egg/鸡蛋 paper/纸 time/时间 money/钱 work/工作 family/家庭 child/孩子 heart/心 dream/梦""")  # English word, Chinese word
OPPOSITES = _rows("""hot/cold big/small up/down happy/sad fast/slow old/young light/dark good/bad open/closed wet/dry early/late rich/poor full/empty hard/soft
high/low long/short loud/quiet day/night left/right strong/weak thick/thin true/false clean/dirty near/far""")
ZH_OPPOSITES = _rows("大/小 高/低 快/慢 热/冷 多/少 长/短 黑/白 上/下 左/右 好/坏 新/旧 轻/重 远/近 早/晚 胖/瘦 强/弱 开/关 真/假 美/丑 甜/苦")
