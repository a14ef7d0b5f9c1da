# ruff: noqa: E501 (tables of words read best in long lines)
"""More purposes of tools, in the format of `domains.py`; all for training."""

from __future__ import annotations

TABLE = """
# crypto : crypto crypto_price coin_price coin : get check fetch : Crypto Prices/加密货币
d (Get|Check) the (current|latest) price of a (cryptocurrency|coin).
d Cryptocurrency (quotes|market data)[ in a currency].
D (查询|获取)(加密货币|虚拟货币|数字货币)的(价格|行情)
s coin:title! to_currency
q (What is|What's|Check) (the price of |){coin} (trading at|worth|now)[ in {to_currency}]?
q (How much is one|Price of one) {coin}[ in {to_currency}]?
q (Is|Did) the coin {coin} (up|fall) today?
Q {coin}(币|)(现在|)(多少钱|什么价)[，用{to_currency}]？
Q (查|看)一下{coin}的行情
Q 数字货币{coin}涨了吗？
r price=decimal change=decimal
# tip : tip tip_calculator gratuity : calculate compute get : Tip Calculator/小费
d (Calculate|Work out) the tip for a bill.
d Tells how much (tip|gratuity) to leave.
D 计算(小费|应付的小费)
s bill:amount! percent
q (How much tip|What tip) should I (leave|give) (on|for) a {bill} dollar bill[ at {percent} percent]?
q (Calculate|Work out) (a {percent} percent|the) tip on {bill}
q Our dinner was {bill}. What about the tip?
Q 账单{bill}元，(小费给多少|该付多少小费)[，按百分之{percent}]？
Q (算一下|计算){bill}元的小费
Q 吃饭花了{bill}，小费呢？
r number
# loan : loan loan_payment loan_calculator installment : calculate compute estimate : Loan Calculator/贷款计算
d (Calculate|Estimate) the monthly (payment|installment) of a loan.
d (Credit|Loan) calculator[: amount, interest and years].
D 计算贷款的(月供|每月还款额)
s amount! rate:percent years:count
q (What is|Calculate) the monthly (payment|rate) for a loan of {amount}[ at {rate} percent][ over {years} years]?
q I want to borrow {amount}[ for {years} years]. What do I pay (a|each) month?
q (How much|What) would a {amount} credit cost me (monthly|every month)[ at {rate} percent]?
Q (贷款|借){amount}元[，利率{rate}%][，分{years}年还]，(月供多少|每个月还多少)？
Q (算一下|计算){amount}的房贷月供
Q 想借{amount}，每月要还多少？
r number
# date_difference : days_between date_difference date_calculator : get count calculate : Date Calculator/日期计算
d (Count|Calculate) the days between two dates.
d Tells how (long|many days) it is from one date to another.
D 计算两个日期(之间|相隔)的天数
s start_date! end_date!
q How many days (are there |)(between {start_date} and {end_date}|from {start_date} to {end_date})?
q (Count|Calculate) the days from {start_date} (until|to) {end_date}
q How long is it from {start_date} till {end_date}?
Q (从|){start_date}到{end_date}(有多少天|一共几天|隔了多久)？
Q {start_date}和{end_date}相差几天？
Q 算算{start_date}离{end_date}还有几天
r number
# air_quality : air_quality pollution aqi smog : get check measure : Air Quality/空气质量
d (Get|Check) the air quality[ index] (in|of) a city.
d (Reports|Measures) (pollution|smog) and fine dust[ for a place].
D (查询|获取)(城市的|)空气质量(指数|)
s city! date
q (How is|What is|Check) the air[ quality] in {city}[ on {date}]?
q (Is there smog|Is the air fresh|Can I go running outside) in {city}[ today]?
q (Pollution|AQI) (in|for) {city}[ please]
Q {city}(的空气怎么样|空气质量如何|有雾霾吗|污染严重吗)？
Q (查一下|看看){city}的(空气指数|PM2.5)
Q {city}今天适合户外跑步吗？
r aqi=int state=state
# earthquakes : earthquakes earthquake_info seismic_events quakes : get list find : Earthquakes/地震
d (List|Get|Find) (recent|the latest) earthquakes[ in a country].
D (查询|列出)(最近的|某国的)地震
s country! days
q (Were there|List|Show me) (any |)earthquakes in {country}[ in the last {days} days]?
q (Did the earth shake|Was there a quake) in {country}[ lately| recently]?
q (When was the last|Find the strongest) earthquake in {country}?
Q {country}(最近|这几天|)(有地震吗|发生地震了吗)？
Q (查一下|列出){country}[最近{days}天]的地震
Q {country}震了吗？
r list
# sunrise : sunrise sun_times sunset daylight : get tell find : Sun Times/日出日落
d (Get|Tell) the time of (sunrise and sunset|sunset) (in|for) a city.
D (查询|获取)城市的(日出|日落)时间
s city! date
q (When|At what time) does the sun (rise|set|go down|come up) in {city}[ on {date}]?
q (When will it get dark|When is sunset|When is sunrise) in {city}[ on {date}]?
q How long is the day in {city}?
Q {city}[{date}](几点日出|几点天黑|什么时候日落|几点天亮)？
Q (查一下|告诉我){city}的日出时间
Q {city}太阳几点下山？
r sunrise=clock sunset=clock
# traffic : traffic road_conditions traffic_info congestion : get check show : Traffic/路况
d (Check|Get) (the traffic|road conditions)[ in a city| on a road].
D (查询|获取)(实时|)路况
s place!
q (How is|Check) the traffic (near|at|around) {place}[ now| today]?
q (Is there a jam|Are the roads free|Is the road blocked) (at|near) {place}?
q Will I get stuck on my way to {place}?
Q {place}(堵车吗|堵不堵|附近路况如何|路上车多吗)？
Q (查一下|看看){place}的路况
Q 去{place}的路通畅吗？
r text
# parking : parking parking_spot car_park garage : find search get : Parking/停车
d Find (parking|a parking spot|a car park) (near|around) a place.
D (查找|搜索)附近的停车(场|位)
s place! hours
q (Where can I|Where do I) park (near|at|around) {place}[ for {hours} hours]?
q (Find|Show) me (parking|a garage|a spot for my car) near {place}[ for {hours} hours]
q (Is there any|I need) parking at {place}
Q {place}(附近|)(哪里可以停车|有停车场吗|好停车吗)？
Q (找|查)一下{place}的停车位[，停{hours}小时]
Q 车停在{place}哪儿好？
r list
# charging : charging_station charger ev_charger charge_point : find locate search : EV Charging/充电桩
d (Find|Locate) (charging stations|a charger) for electric cars.
D (查找|定位)(电动车|新能源车)充电(桩|站)
s city! count
q (Where can I|Where do I) charge my (car|electric car|EV) in {city}?
q (Find|List) (charging stations|chargers) in {city}[, {count} please]
q My battery is low. (Any charger|Is there a station) in {city}?
Q {city}(哪里有充电桩|哪里能充电|有充电站吗)？
Q (找|搜)一下{city}的充电桩
Q 电动车快没电了，{city}哪儿能充？
r list
# qr_code : qr_code qr barcode qr_generator : create make generate : QR Codes/二维码
d (Create|Make|Generate) a QR code (for|from) a (link|text).
D 生成二维码
s url! color
q (Make|Create|Generate) a QR code (for|of|from) {url}[ in {color}]
q (Turn|Convert) {url} into a (QR code|code to scan)
q I need a code people can scan for {url}
Q (把|将){url}(做成|生成|转成)二维码[，颜色{color}]
Q (生成|做)一个{url}的二维码
Q 我想让人扫码打开{url}
r url
# short_link : short_url url_shortener short_link : create shorten make : Short Links/短链接
d (Shorten|Create a short link for) a (long |)(URL|address).
D (生成短链接|缩短网址)
s url!
q (Shorten|Make shorter) (the link |){url}[ please]
q (Create|Give me|I need) a short (link|URL) for {url}
q {url} is too long. Can you make it short?
Q (缩短|压缩)(网址|链接){url}
Q (给|帮){url}(生成|做)一个短(链接|网址)
Q {url}太长了，弄短一点
r url
# speech : speech text_to_speech tts voice : speak generate synthesize : Text to Speech/语音合成
d (Read a text aloud|Convert text to speech|Turn text into spoken audio).
D (文字转语音|把文本读出来|语音合成)
s text! language
q (Read|Say|Speak) {text} (aloud|out loud)[ in {language}]
q (Convert|Turn) {text} (to|into) (speech|audio|a voice message)
q I want to hear {text}[ in {language}]
Q (朗读|念出|大声读){text}[，用{language}]
Q (把|将){text}(转成语音|变成音频)
Q 我想听{text}
r url
# transcribe : transcript transcription speech_to_text dictation : create make get : Transcription/语音转文字
d (Transcribe|Write down) an audio (file|recording).
D (语音转文字|把录音转成文字)
s file! language
q (Transcribe|Write down|Type up) (the recording|the audio|) {file}[, it is in {language}]
q (What is said|What do they say) in {file}?
q (Turn|Convert) the audio {file} into text
Q (把|将){file}(转成文字|转写出来)[，语言是{language}]
Q (录音|音频){file}里说了什么？
Q 帮我听写{file}
r text
# ocr : ocr image_text text_recognition scanner : read extract recognize : OCR/文字识别
d (Read|Extract) the text (in|from) (an image|a picture|a scan).
D (识别|提取)图片(里|中)的文字
s file!
q (What does|What text is) (it say in|in the picture) {file}?
q (Extract|Read|Recognize) the (text|words) (from|in) {file}
q Can you read the scan {file}?
Q (识别|提取|读出){file}(里|中)的(文字|字)
Q {file}(上写了什么|里有什么字)？
Q 看看图片{file}写的啥
r text
# sentiment : sentiment mood_analysis sentiment_analysis tone : analyze detect classify : Sentiment/情感分析
d (Tell whether|Detect if) a text is positive or negative.
d (Analyze|Classify) the (sentiment|mood|tone) of a text.
D (分析|判断)文本的(情感|情绪|语气)
s text!
q (Is|Would you say) {text} (positive or negative|a happy message|friendly)?
q (Analyze|Classify) the (sentiment|tone|mood) of {text}
q How does {text} sound to you?
Q {text}(是正面的还是负面的|是什么情绪|语气怎么样)？
Q (分析|判断){text}的情感
Q 说{text}的人高兴吗？
r state
# grammar : grammar spell_check proofreader spelling : check correct fix : Grammar/语法检查
d (Check|Correct) the (grammar|spelling) of a text.
d Proofreads (sentences|a text) and fixes mistakes.
D (检查|纠正)(语法|拼写)(错误|)
s text! language
q (Check|Correct|Fix|Proofread) (the grammar of |the spelling of |){text}[ in {language}]
q (Are there|Do you see) (any |)mistakes in {text}?
q Is {text} (correct|spelled right|good English)?
Q (检查|改正|纠正){text}的(语法|拼写)
Q {text}(有错吗|写得对吗|有没有错别字)？
Q 帮我校对{text}
r text
# detect_language : detected_language language_detector language_of_text : detect recognize identify : Language Detection/语种识别
d (Detect|Identify|Recognize) (the|which) language[ of] a text[ is written in].
D (识别|检测)文本的语(种|言)
s text!
q (What|Which) language is {text}[ written in]?
q (Detect|Identify|Recognize) the language of {text}
q I do not know what language {text} is
Q {text}是(什么语言|哪国话|哪种文字)？
Q (识别|检测){text}的语种
Q 这句{text}是哪国语言
r text
# run_code : python code code_interpreter script : run execute eval : Code/代码执行
d (Run|Execute) (Python code|a script|a program).
D (运行|执行)(Python|)代码
s file! args:names
q (Run|Execute|Start) (the script |the program |){file}[ with {args}]
q (What does|What is the output of) {file}[ print]?
q Can you (execute|try out) {file}[ with the arguments {args}]?
Q (运行|执行|跑一下)(脚本|程序|){file}[，参数是{args}]
Q {file}(的输出是什么|运行结果是什么)？
Q 试试{file}能不能跑
r text
# git_branch : branch git_branch git repository_branch : create make add : Git Branch/代码分支
d (Create|Make) a (branch|new branch) in (a|the) repository.
D (创建|新建)(Git|代码)分支
s title! from:user
q (Create|Make|Start) a (git |)branch (called|named) {title}[ from {from}]
q (Branch off|Check out a new branch) {title}[ from {from}]
q I need a branch {title}
Q (创建|新建|拉)一个(叫|名为){title}的分支[，基于{from}]
Q (开|建)分支{title}
Q 我要在新分支{title}上开发
r status
# container : container docker docker_container pod : start stop restart : Containers/容器
d (Start|Stop|Restart) a (docker |)container.
D (启动|停止|重启)(Docker|)容器
s ident!
q (Start|Stop|Restart|Boot) (the container|container|docker) {ident}[ please| again]
q (Bring up|Take down|Kill) the (docker |)container {ident}
q The container {ident} hangs, (restart|stop) it
Q (启动|停止|重启|关掉)容器{ident}
Q 容器{ident}(卡住了，重启一下|挂了，拉起来)
Q 把容器{ident}停掉
r status
# dns : dns domain_lookup dns_records nameserver : lookup resolve query : DNS/域名解析
d (Look up|Resolve) (a domain name|DNS records).
D (查询|解析)域名
s host!
q (What is|Find|Look up) the IP (address |)of {host}
q (Resolve|Look up) (the domain |the name |){host}
q (Where does|What does) {host} point to?
Q (解析|查一下)(域名|){host}
Q {host}的IP(是多少|地址是什么)？
Q {host}指向哪里？
r ident
# ip_location : ip_location geoip ip_lookup : get find lookup : IP Location/IP归属地
d (Find|Get) (where an IP address is|the location of an IP address).
D (查询|获取)IP(地址|)的(归属地|位置)
s ip:host!
q (Where is|Locate|Find) the (IP|IP address|address) {ip}[ located]?
q (Which|What) country is {ip} (in|from)?
q (Where|From where) does the visitor {ip} come from?
Q IP {ip}(在哪里|是哪里的|属于哪个国家)？
Q (查一下|定位){ip}的归属地
Q {ip}是哪儿的地址？
r city=city country=phrase
# wiki : wikipedia encyclopedia wiki wiki_article : read get lookup : Encyclopedia/百科
d (Read|Get|Look up) an (article of the encyclopedia|encyclopedia article).
d Encyclopedia with articles (about|on) (people, places and things|everything).
D (查询|阅读)百科(词条|全书)
s topic! language
q (What does the encyclopedia say|Read the article|Show me the wiki page) about {topic}[ in {language}]
q (Look up|Find) {topic} (in the encyclopedia|on Wikipedia)[ in {language}]
q (Tell me|I want to read) about {topic} (from|on) the wiki
Q (百科里|维基上)(怎么说|怎么介绍){topic}？
Q (查|看)一下{topic}的(百科|词条)
Q 打开{topic}的百科页面
r text
# joke : joke funny_story humor : tell get random : Jokes/笑话
d (Tell|Get) a (random |)joke.
D (讲|获取)(一个|随机)笑话
s topic
q (Tell me|I want to hear|Give me) (a joke|something funny)[ about {topic}]
q (Make me laugh|Cheer me up)[ with a joke about {topic}]
q Know any good jokes[ about {topic}]?
Q (讲个|来个|说个)[关于{topic}的]笑话
Q 逗我(笑|开心)一下[，关于{topic}]
Q 有什么好笑的吗？
r text
# horoscope : horoscope zodiac star_sign fortune : get read tell : Horoscope/星座运势
d (Get|Read) the (daily |)horoscope (of|for) a (star sign|zodiac sign).
D (查询|获取)星座(今日|)运势
s sign:title! date
q (What is|Read me|Show) the horoscope (for|of) {sign}[ on {date}]
q (I am a|My sign is) {sign}. (How will my day be|What do the stars say)[ on {date}]?
q (What do the stars|What does the zodiac) say for {sign}[ today]?
Q {sign}(今天运势如何|的运势怎么样|座今天运气好吗)？
Q (查一下|看看){sign}[{date}]的星座运势
Q 我是{sign}的，今天顺利吗？
r text
# lyrics : lyrics song_text song_words : get find show : Lyrics/歌词
d (Get|Find|Show) the lyrics of a song.
D (查找|获取)歌(曲的|)词
s song! artist
q (What are|Show me|Find) the (lyrics|words) (of|to) {song}[ by {artist}]
q (How does|I want to sing) the song {song}[ by {artist}][ go]?
q I forgot the words of {song}[ by {artist}]
Q (查一下|找|看看){song}的歌词[，{artist}唱的]
Q {song}(怎么唱|的歌词是什么)？
Q 我想学唱{song}
r text
# sports : score sports_score match_result team_score : get check show : Sports Scores/比分
d (Get|Check) the (score|result) of a team's (latest |)match.
D (查询|获取)(球队|比赛)的比分
s team:title! date
q (Did|How did) {team} (win|do|play|lose)[ on {date}| yesterday| last night]?
q (What was|What is|Check) the (score|result) of {team}['s match][ on {date}]?
q (Who won the match of|How many goals for) {team}[ on {date}]?
Q {team}(赢了吗|输了吗|打得怎么样|比分多少)？
Q (查一下|看看){team}[{date}]的(比赛结果|比分)
Q {team}那场球谁赢了？
r text
# watering : irrigation sprinkler watering plants : start run water : Watering/浇水
d (Water|Irrigate) the (plants|flowers|lawn).
d (Start|Run) the (sprinkler|irrigation)[ for some minutes].
D (给植物浇水|启动灌溉|打开洒水器)
s minutes! zone:room
q (Water|Sprinkle) the (plants|flowers|lawn)[ in the {zone}] for {minutes} minutes
q (Run|Turn on) the (sprinkler|watering)[ in the {zone}] for {minutes} minutes
q The flowers look dry, give them {minutes} minutes of water
Q (给|帮)(花|植物|草坪)浇(水|)[{zone}]{minutes}分钟
Q (打开|启动)[{zone}的](洒水器|灌溉){minutes}分钟
Q 花都蔫了，浇{minutes}分钟水吧
r status
# vacuum : vacuum robot_vacuum cleaner cleaning_robot : start run send : Vacuum Robot/扫地机器人
d (Start|Send) the (robot vacuum|vacuum cleaner|cleaning robot)[ to a room].
D (启动|派出)扫地机器人
s room! mode:level
q (Vacuum|Sweep|Hoover) the {room}[ at power {mode}][ please]
q (Send|Start) the (robot|vacuum) (to|in) the {room}
q The floor of the {room} is dirty
Q (打扫|清扫|吸一下){room}[，吸力{mode}]
Q (让|派)(扫地机|机器人)去{room}
Q {room}的地板脏了
r status
# door_lock : door_lock smart_lock lock front_door : lock unlock control : Door Lock/门锁
d (Lock|Unlock) (a|the) door.
D (锁上|打开|控制)(智能|)门锁
s door:room! state
q (Lock|Unlock|Open|Close) the (door of the |){door} door
q (Is|Did I lock) the {door} door[ locked]?
q Somebody is at the {door} door, let them in
Q (锁上|打开|关好){door}的门
Q {door}的门(锁了吗|关了没有)？
Q 有人在{door}门口，开一下门
r status
# blinds : blinds curtains shades roller_blinds : set open close move : Blinds/窗帘
d (Open|Close|Move) the (blinds|curtains)[ of a room].
D (打开|关闭|控制)窗帘
s room! percent
q (Open|Close|Lower|Raise|Draw) the (blinds|curtains|shades) in the {room}[ to {percent} percent]
q (It is too bright|The sun blinds me) in the {room}[, close {percent} percent]
q Let some light into the {room}
Q (拉上|打开|关上|拉开){room}的窗帘[到百分之{percent}]
Q {room}(太亮了|太暗了)，动一下窗帘
Q 让{room}透点光
r status
# tv : tv television tv_channel channel : switch set watch change : Television/电视
d (Switch|Change) the (channel|program) (on|of) the (TV|television).
D (切换|更换)电视(频道|节目)
s channel:title! level
q (Switch|Change|Turn) (the TV|the television|) to {channel}[ with volume {level}]
q (Put on|I want to watch|Show me) {channel} (on TV|on the television)
q (What is on|Is there something on) {channel}[ right now]?
Q (电视|)(换到|调到|切到){channel}(台|频道|)[，音量{level}]
Q (我想看|放一下)电视上的{channel}
Q {channel}台在播什么？
r status
# steps : steps step_count pedometer fitness : get count show : Steps/步数
d (Get|Count|Show) the steps (walked|of a day).
D (查询|统计)(走的|每日)步数
s date!
q (How many steps|How far) did I (walk|take|go) (on |){date}?
q (Show|Count) my steps (for|of|on) {date}
q Was I (active|lazy) (on |){date}?
Q (我|){date}(走了多少步|走了几步|步数是多少)？
Q (查一下|统计){date}的步数
Q {date}我运动够了吗？
r number
# sleep : sleep sleep_data sleep_tracker rest : get show analyze : Sleep/睡眠
d (Get|Show|Analyze) (the sleep|how long somebody slept)[ of a night].
D (查询|分析)睡眠(情况|数据|)
s date! person
q (How (well|long) did I sleep|Did I sleep enough) (on|in the night of) {date}?
q (Show|Analyze) (my|the) sleep[ of {person}] (on|of) {date}
q Was my night of {date} any good?
Q (我|){date}(睡得怎么样|睡了多久|睡眠如何)？
Q (查看|分析)[{person}]{date}的睡眠
Q {date}我休息好了吗？
r hours=decimal state=state
# grades : grades school_report marks transcript : get show check : Grades/成绩
d (Get|Show) the (grades|marks) of a student.
D (查询|获取)学生的(成绩|分数)
s student:person! subject:title
q (What grades|What marks|Which marks) (did|does) {student} (get|have)[ in {subject}]?
q (Show|Check) the (school report|grades|marks) of {student}[ in {subject}]
q How is {student} doing at school[ in {subject}]?
Q {student}(的成绩怎么样|考了多少分|[{subject}]考得好吗)？
Q (查一下|看看){student}[{subject}]的(成绩|分数)
Q {student}在学校学得如何？
r list
# enrol : lesson lesson_enrolment class_registration seminar : join enrol register book : Class Enrolment/报班
d (Enrol|Register) (a student|somebody) (in|for) a class.
D (报名|报读)(培训|)班
s person! lesson:title! date
q (Enrol|Register|Sign up) {person} (for|in) (the seminar |the class |){lesson}[ from {date}]
q {person} wants to (take|join|attend) {lesson}[ from {date}]
q (Put|Get) {person} into the class {lesson}
Q (给|帮|为){person}报名{lesson}(课|班)[，从{date}开始]
Q {person}想(上|学|参加){lesson}
Q 让{person}加入{lesson}班
r status
# library_loan : loan library_loan borrowed_book : renew extend borrow : Library Loans/图书借阅
d (Borrow|Renew|Extend) a book (of|from) the library.
D (借阅|续借)图书(馆的书|)
s book! days
q (Renew|Extend|Borrow) (the book |){book}[ for {days} days]
q I am not done with {book}, keep it[ for {days} more days]
q (Can I|May I) have {book} (from the library|a bit longer)[ for {days} days]?
Q (续借|借阅|借)(图书|)《{book}》[{days}天]
Q 《{book}》还没看完，(再借一阵|延长一下)[，{days}天]
Q 图书馆的《{book}》我想多留几天
r status
# events : events concerts event_tickets shows : find search list : Events/演出
d (Find|List) (events|concerts and shows) in a city.
D (查找|列出)(城市的|)(演出|表演)
s city! date topic
q (What is going on|What can I do|Any concerts|Any shows) in {city}[ on {date}][ about {topic}]?
q (Find|List|Show) (events|concerts|shows) in {city}[ on {date}]
q I am bored in {city}[ on {date}]. Where is something happening?
Q {city}[{date}](有什么节目|有演唱会吗|有什么好玩的|有演出吗)？
Q (查找|列出){city}[{date}]的(演出|表演)
Q 在{city}好无聊，哪里有热闹？
r list
# water_bill : bill utility_bill electricity_bill water_bill : get check show : Utility Bills/水电费
d (Get|Check|Show) the (water|electricity|utility) bill[ of a month].
D (查询|查看)(水费|电费|水电费)
s month:date! order
q (How much|What) do I owe for (electricity|water|gas) (in|on) {month}?
q (Show|Check) (the|my) (utility|water|electricity) bill (of|for) {month}
q Did I use much power in {month}?
Q {month}的(水电费|电费|水费)(是多少|多少钱)？
Q (查一下|看看){month}的(账单|电费)
Q {month}用电多吗？
r number
"""
