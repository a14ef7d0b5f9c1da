# ruff: noqa: E501 (tables of words read best in long lines)
"""What tools are for: a table of domains, each with descriptions and questions in both languages.

`# key : nouns : verbs : English name/Chinese name`, then `d`/`D` descriptions, `s` arguments (`!` = required, `a.b` =
b inside an object a), `q`/`Q` questions and `r` what a result holds. Lower case English, upper case Chinese.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache

from demo.recipe import domains_more

TABLE = """
# weather : weather current_weather weather_info forecast : get fetch check lookup query : Weather/天气查询
d (Get|Returns|Look up) the (current|latest) weather (in|for) a (given|certain) (city|location).
d Weather (forecast|report|information) for (any|a) city[, with temperature and conditions].
D (查询|获取)(指定|某个)城市的(实时|当前)天气[情况]
s city! unit days
q (What's|What is|How is|Tell me|Check) the weather [like ](in|for) {city}[ in {unit}][ for the next {days} days]?
q (Will it rain|Is it raining|Is it cold|Is it sunny|Should I take an umbrella) in {city}[ in the next {days} days]?
q (Weather|Forecast) (in|for) {city}[, {unit} please][ for {days} days]
q (I am going to|I'm flying to) {city}. What will the weather be like[ for {days} days]?
Q {city}(的天气怎么样|天气如何|今天天气怎么样|会下雨吗|冷不冷)[，未来{days}天的][，用{unit}]？
Q (查一下|帮我查|看看){city}[未来{days}天]的天气[，单位用{unit}]
Q 我要去{city}，那里的天气怎么样？
r temperature=int condition=weather humidity=int
# search : search web_search google_search internet_search bing : search run do use : Web Search/网络搜索
d (Search the (web|internet)|General search engine) for (information|facts|news and pages).
d (Looks up|Finds) (anything|information) (on the web|online)[, such as encyclopedia knowledge and news].
D (通用搜索引擎|网络搜索)，(可用于访问互联网、查询百科知识|用来在网上查找信息)[、了解时事新闻等]
s query! count
q (Search|Google|Look up) {query}[ and give me {count} results][ online| on the web]
q (Search for|Find information about|Find me something about) {query}[ online| on the internet][, {count} results]
q (What can you find about|Can you search) {query}[ on the web]?
q (Who is|What is) {query}? (Search it|Look it up)[ online].
Q (搜索|搜一下|上网查|百度一下|搜索一下){query}[，给我{count}条结果]
Q (帮我搜一下|在网上找找|查找关于){query}的(信息|资料|内容)
Q {query}是(什么|谁)？(搜一下|上网查查)
r text
# calculator : calculator calc math compute arithmetic : use run evaluate do : Calculator/计算器
d (Evaluate|Compute|Calculate) (a mathematical|an arithmetic) expression[ and return the result].
d (Does|For) (arithmetic|exact calculations)[ with large numbers].
D (计算数学表达式|进行数学运算|计算器，可以做加减乘除)[并返回结果]
s expression!
q (What is|What's|How much is|Tell me what is) {expression}?
q (Calculate|Compute|Evaluate|Work out|What is|What's) {expression}[ for me| please]
q (How much is|What does this equal:|Can you calculate|I need the result of) {expression}?
Q (计算|算一下|帮我算|请计算){expression}
Q {expression}(等于几|=？|等于多少？|是多少？)
Q {expression}(等于多少|是多少|的结果是多少)？
r number
# currency : currency exchange_rate currency_converter money fx : convert exchange get : Currency/货币换算
d (Convert|Exchange) (money|an amount) (from one currency to another|between currencies).
d Currency (converter|conversion) with (current|live) exchange rates.
D (货币换算|汇率转换)，把(一种货币|金额)换成另一种货币
s amount! from_currency! to_currency!
q (Convert|Exchange|Change) {amount} {from_currency} (to|into) {to_currency}[ please]
q How (much|many {to_currency}) (is|are|do I get for) {amount} {from_currency}[ in {to_currency}]?
q What is {amount} {from_currency} (worth in|in) {to_currency}?
Q (把|将){amount}{from_currency}(换成|兑换成|换算成){to_currency}
Q {amount}{from_currency}(等于多少|是多少|能换多少|值多少){to_currency}？
r number
# email : email mail message_mail : send write compose deliver : Email/邮件
d Send an email[ to (somebody|a recipient)][ with a subject and a body].
d (Writes and sends|Sends) (electronic mail|e-mails) to an address.
D (发送|发)(电子邮件|邮件)[给指定的收件人]
s email! title! text
q (Send|Write) an email to {email} (with the subject|titled|with subject) {title}[ saying {text}]
q (Email|Mail) {email} about {title}[ and say {text}]
q (Can you|Could you|I want to) send a mail to {email}, subject {title}[, text {text}]
Q (给|向){email}(发一封邮件|发邮件|写封邮件)，(主题是|标题为){title}[，内容是{text}]
Q (发邮件|发送邮件)到{email}，标题{title}[，正文写{text}]
r status
# sms : sms text_message message chat_message : send text post : Messages/短信
d Send a (text message|short message|SMS) to (a contact|somebody).
D (给联系人)?发送(短信|消息)给(联系人|某人)
s recipient! message!
q (Text|Message) {recipient} (saying|that says|with the text) {message}
q (Send|Write) (a text|a message|an SMS) to {recipient}(: | saying ){message}
q (Tell|Let) {recipient} (know |by text ){message}
Q (给|向){recipient}(发短信|发消息|发条信息)(说|，内容是|：){message}
Q (告诉|短信通知){recipient}{message}
r status
# phone_call : call phone dial : make start place : Phone/电话
d (Make|Start|Place) a phone call[ to a number].
D (拨打|打)电话(给某个号码|)
s phone!
q (Call|Dial|Phone|Ring) {phone}[ for me| please| now]
q (Can you|Please|I want to) (make a call to|call) {phone}
Q (拨打|打电话给|呼叫|拨通){phone}
Q 帮我(打个电话到|拨一下){phone}
r status
# reminder : reminder alert memo : set create add make : Reminder/提醒
d (Set|Create) a reminder[ for a (certain|given) (time|day)].
d (Reminds the user|Remind me) (of something|to do something)[ at a time].
D (设置|创建|添加)提醒[事项]
s title! time date repeat
q (Remind me|Set a reminder) (of|about|for) {title}[ at {time}][ on {date}][ every day{repeat=true}]
q (Create|Add) a reminder for {title}[ at {time}][ on {date}]
q Don't let me forget {title}[ on {date}][ at {time}]
Q (提醒我|设置提醒：|添加一个提醒：){title}[，时间是{time}][，日期{date}][，每天重复{repeat=true}]
Q [{date}][{time}](提醒我|记得叫我){title}
r status
# alarm : alarm wake_up_alarm alarm_clock : set add create : Alarm/闹钟
d Set an alarm[ clock][ for a given time].
D (设置|设定|新建)闹钟
s time! weekday repeat
q (Set|Create|Add) an alarm (for|at) {time}[ on {weekday}][ every day{repeat=true}]
q (Wake me up|Wake me) at {time}[ on {weekday}][, every day{repeat=true}]
Q (设|定|帮我设)(一个|个){time}的闹钟[，每天都响{repeat=true}]
Q [{weekday}]{time}(叫醒我|叫我起床)
r status
# timer : timer countdown stopwatch : start set run begin : Timer/计时器
d Start a (countdown|timer)[ for some minutes].
D (启动|开始)(倒计时|计时器)
s minutes! title
q (Set|Start) a timer for {minutes} minutes[ called {title}| named {title}]
q (Count down|Time) {minutes} minutes[ for {title}]
q (I need|Give me) a {minutes} minute (timer|countdown)
Q (设置|开始|启动)(一个|)({minutes}分钟的)(计时器|倒计时)
Q (倒计时|计时){minutes}分钟[，名称{title}]
r status
# calendar : event calendar_event meeting appointment : create add schedule book : Calendar/日历
d (Create|Add|Schedule) (an event|a meeting|an entry) in the calendar.
D (在日历中|)(创建|添加|安排)(日程|会议|事件)
s title! date! time names
q (Schedule|Create|Add) (a meeting|an event|an appointment) (called|titled|named) {title} on {date}[ at {time}][ with {names}]
q (Put|Add) {title} (in|to) my calendar (on|for) {date}[ at {time}][, inviting {names}]
q (Plan|Book) {title} for {date}[ at {time}][ with {names}]
Q (在|于){date}[{time}](安排|创建|添加)(一个|)(会议|日程)，(标题|主题)(是|为){title}[，参加者有{names}]
Q (把|将){title}(加到|添加到)日历，日期{date}[，时间{time}]
r status
# stock : stock stock_price share_price quote : get fetch check : Stocks/股票
d (Get|Returns|Look up) the (current|latest) (stock|share) price[ of a company].
D (查询|获取)(股票|股价)(的最新价格|行情|)
s symbol! period
q (What's|What is|Check|Get|Tell me) the (stock|share) price of {symbol}[ over the last {period}]?
q (How is|How are) {symbol} (stock|shares) doing[ this {period}]?
q (Quote|Price) for {symbol}[ please]
Q (查询|查一下|看看){symbol}的(股价|股票价格|行情)
Q {symbol}(现在股价多少|的股票现在多少钱|今天股价如何)？
r price=decimal change=decimal
# news : news headlines news_articles latest_news : get fetch read find : News/新闻
d (Get|Returns|Fetch) the (latest|newest) (news|headlines)[ about a topic].
D (获取|查询)(最新|某个主题的)新闻
s topic! count language
q (What's|Give me|Show me|Get) the (latest|newest|recent) news (about|on) {topic}[, {count} articles][ in {language}]
q (Any|Is there any) news about {topic}[ in {language}]?
q (Read me|Find) {count} (headlines|news stories) about {topic}
Q (有什么|有没有)关于{topic}的(新闻|最新消息)[，要{language}的]？
Q (给我|查看|看看)[{count}条]{topic}的(最新新闻|新闻)
r list
# translate : translate translator translation : translate run do : Translator/翻译
d Translate (a text|words|sentences) (into|to) another language.
D (翻译|将文本翻译成)(其他语言|另一种语言|)
s text! language!
q Translate {text} (to|into) {language}[ please]
q (How do you say|What is) {text} in {language}?
q (Put|Say) {text} (into|in) {language}
Q (把|将){text}(翻译成|译成|翻成){language}
Q {text}用{language}怎么说？
r text
# dictionary : definition dictionary word_meaning define : get lookup find : Dictionary/词典
d (Look up|Get) the (meaning|definition) of a word.
D (查询|查找)(单词|词语)的(含义|定义|意思)
s word!
q (Define|Look up the meaning of|Give me the definition of) {word}
q What does (the word |){word} mean?
q What is the (meaning|definition) of {word}?
Q {word}(是什么意思|的意思是什么|的定义是什么|怎么解释)？
Q (查一下|查字典：|解释一下){word}[这个词]
r text
# flight_search : flights flight_search air_tickets plane_tickets : search find list : Flights/机票
d (Search|Find) (flights|plane tickets|air tickets) (between|from one city to another)[ cities].
D (搜索|查询)(航班|机票)
s from_city! to_city! date cabin people
q (Find|Search|Show|Book)[ me] (flights|a flight|plane tickets) from {from_city} to {to_city}[ on {date}][ in {cabin} class][ for {people} people]
q I (want|need) to fly from {from_city} to {to_city}[ on {date}][ in {cabin}]
q (Are there flights|Any planes) (going to {to_city} from {from_city}|from {from_city} to {to_city})[ on {date}]?
Q (查询|搜索|预订|找)[{date}]从{from_city}(到|飞|飞往){to_city}的(航班|机票)[，{cabin}][，{people}个人]
Q 我想从{from_city}飞到{to_city}[，日期{date}]
r list
# flight_status : flight_status flight_info plane_status : get check track : Flight Status/航班动态
d (Check|Get|Track) the status of a flight[ by its number].
D (查询|获取)(航班动态|航班状态)
s flight! date
q (Is|Has) flight {flight} (on time|delayed|landed)[ on {date}]?
q (What's|Check|Tell me) the status of flight {flight}[ on {date}]
q When does flight {flight} (land|arrive|depart)[ on {date}]?
Q (航班|){flight}(准点吗|延误了吗|到了吗|的状态如何)？
Q (查一下|查询)航班{flight}[{date}]的(状态|动态)
r status
# hotel : hotel hotels room_booking lodging accommodation : find search book reserve : Hotels/酒店
d (Find|Search|Book) (hotels|a hotel|a place to stay) in a city.
D (搜索|预订|查找)(酒店|宾馆|住宿)
s city! start_date nights people price
q (Find|Book|Search for|Get)[ me] a (hotel|room|hotel room|place to stay) in {city}[ from {start_date}][ for {nights} nights][ for {people} people][ under {price} dollars]
q (I need|I'm looking for) (a hotel|somewhere to sleep|accommodation) in {city}[ for {nights} nights]
Q (预订|找|订|搜索){city}的(酒店|宾馆)[，从{start_date}开始][，住{nights}晚][，{people}个人][，预算{price}元]
Q 我(要|想)在{city}(住|找酒店住){nights}晚
r list
# restaurant : restaurant restaurants dining places_to_eat : find search recommend : Restaurants/餐厅
d (Find|Search for|Recommend) (restaurants|places to eat) in a city[ by cuisine].
D (查找|推荐)(餐厅|饭店|吃饭的地方)
s city! cuisine people
q (Find|Recommend|Suggest)[ me] a[ good] {cuisine} restaurant in {city}[ for {people} people]
q Where can (I|we) eat[ {cuisine} food] in {city}?
q (Good|Best) (restaurants|places to eat) in {city}[ with {cuisine} food]
Q (推荐|找)(一家|几家){city}的(餐厅|饭店)[，要{cuisine}]
Q {city}有什么好吃的[{cuisine}](餐厅|饭馆)？
r list
# table_booking : table reservation table_booking dinner_reservation : book reserve make : Table Booking/订位
d (Book|Reserve) a table at a restaurant.
D (预订|预约)餐厅(座位|餐桌)
s people! date! time! place
q (Book|Reserve) a table for {people}[ people] on {date} at {time}[ at {place}]
q (I'd like|Get us) a (table|dinner reservation) on {date} at {time} for {people} people[ at {place}]
Q (订|预订)(一张|){date}{time}{people}(人|个人)的(桌子|餐位|座位)[，地点{place}]
Q {date}{time}我们{people}个人(吃饭|用餐)，请订位
r status
# train : train_tickets trains railway train_schedule : find search get : Trains/火车票
d (Search|Find) train (tickets|connections|times) between (two|) (cities|stations).
D (查询|搜索)(火车票|列车|高铁)
s from_city! to_city! date time
q (Find|Show|Which)[ me] trains[ run| go] from {from_city} to {to_city}[ on {date}][ after {time}]
q (When does the|Is there a) (train|railway connection) from {from_city} to {to_city}[ leave][ on {date}]?
q (I want|I need) a train ticket from {from_city} to {to_city}[ on {date}]
Q (查询|查|买)[{date}]{from_city}(到|去|至){to_city}的(火车|高铁|火车票)[，{time}以后]
Q 从{from_city}坐火车去{to_city}[，{date}]
r list
# directions : directions route navigation path_finder : get find plan : Navigation/导航
d (Get|Find|Plan) (directions|the route|a way) from one place to another.
D (规划|查询)(路线|导航|从一地到另一地的走法)
s from_city! to_city! mode
q (How do I get|Show me the way|Give me directions|Navigate) from {from_city} to {to_city}[ by {mode}]?
q (What's the best|Find the fastest|Plan a) route from {from_city} to {to_city}[ by {mode}]
Q 从{from_city}到{to_city}(怎么走|怎么去|的路线)[，{mode}]？
Q (导航|规划路线)：从{from_city}到{to_city}[，{mode}]
r text
# distance : distance travel_distance how_far : get calculate measure : Distance/距离
d (Calculate|Get|Measure) the distance between two (cities|places).
D (计算|查询)两(地|个城市)之间的距离
s from_city! to_city! unit
q How far (is it|is {to_city}) from {from_city}[ to {to_city}]?
q (What is|Calculate|Tell me) the distance (between {from_city} and {to_city}|from {from_city} to {to_city})
Q {from_city}(到|离|距离){to_city}有多远？
Q (计算|算一下){from_city}(和|到){to_city}(之间|)的距离
r number
# taxi : taxi ride cab car_ride : order book call : Taxi/打车
d (Order|Book|Call) a (taxi|cab|ride).
D (叫车|打车|预约出租车)
s from_city! to_city! time people
q (Order|Call|Book|Get)[ me] a (taxi|cab|ride) from {from_city} to {to_city}[ at {time}][ for {people} people]
q I need a (ride|cab) from {from_city} to {to_city}[ at {time}]
Q (叫|打|预约)(一辆车|车|出租车)从{from_city}(去|到){to_city}[，{time}出发][，{people}个人]
r status
# music : music song player playback : play start put_on : Music Player/音乐播放
d (Play|Start) (music|a song)[ by name].
D 播放(音乐|歌曲)
s song! artist
q (Play|Put on|Start) (the song |){song}[ by {artist}]
q (I want to|Can we) (hear|listen to) {song}[ by {artist}]
Q (播放|放|放一首|来一首)[{artist}的]{song}
Q 我想听[{artist}的]{song}
r status
# playlist : playlist song_list mixtape : create make build : Playlist/歌单
d (Create|Make|Build) a playlist[ with a (name|title)].
D (创建|新建)(歌单|播放列表)
s title! count genre
q (Create|Make) a playlist (called|named|with the name) {title}[ with {count} songs]
q (New|Build me a) playlist {title}[ with {count} tracks]
Q (创建|新建)(一个|)(歌单|播放列表)，(名称|名字)(叫|是){title}[，共{count}首歌]
r status
# lights : lights light lamp smart_light lighting : control set adjust switch : Lights/灯光控制
d (Control|Adjust|Set) the lights (in a room|of the home).
D (控制|调节)(房间|家里)的灯光
s room! level color state
q (Set|Dim|Adjust) the lights in the {room} to {level}[ percent][ and make them {color}]
q (Make|Turn) the {room} lights {color}[ at {level} percent]
q (Light|Illuminate) the {room} (in|with) {color}
Q (把|将){room}的灯(调到|亮度设为){level}[，颜色{color}]
Q {room}的灯光(换成|调成|变成){color}
r status
# device : smart_home device appliance home_control : control switch toggle : Smart Home/智能家居
d (Turn|Switch) (devices|appliances) in the (home|house) on or off.
D (打开或关闭|控制)家里的(设备|电器)
s device! state! room
q (Turn|Switch) {state} the {device}[ in the {room}]
q (Turn|Switch) the {device} {state}[ in the {room}]
Q (把|将)[{room}的]{device}{state}
Q {state}[{room}的]{device}
r status
# thermostat : thermostat heating room_temperature climate : set adjust change : Thermostat/温控器
d (Set|Adjust|Change) the (room temperature|heating|thermostat).
D (设置|调节)(室内温度|暖气|温控器)
s temperature! room
q (Set|Change|Adjust) the (temperature|thermostat|heating)[ in the {room}] to {temperature}[ degrees]
q Make (it|the {room}) {temperature} degrees
Q (把|将)[{room}的](温度|暖气)(调到|设为|设置成){temperature}度
r status
# todo : todo task todo_item to_do : add create new : To-do List/待办事项
d (Add|Create) a (task|to-do)[ on the list][ of things to do].
D (添加|创建|新增)待办(事项|任务)
s title! priority date
q (Add|Put) {title} (to|on) my (to-do list|tasks|task list)[ with {priority} priority][, due {date}]
q (Create|New|Make a) task[:] {title}[, due {date}][, priority {priority}]
Q (添加|新建)(待办|任务)[：]{title}[，优先级{priority}][，截止{date}]
Q (把|将){title}(加到|添加到|放进)(待办清单|任务列表)[，优先级{priority}]
r status
# shopping_list : shopping_list groceries grocery_list shopping : add update put : Shopping List/购物清单
d (Add|Put) items (to|on) the (shopping|grocery) list.
D (把物品加入|添加到)购物清单
s items!
q (Add|Put) {items} (to|on) (my|the) (shopping|grocery) list
q (I need to buy|We need) {items}, (add|put) them (to|on) the (shopping|grocery) list
Q (把|将){items}(加到|添加到|加入)(购物清单|采购清单)
Q 购物清单(加上|里添加){items}
r status
# notes : note notes memo notebook : save create write take : Notes/笔记
d (Save|Write|Take) a note[ with a text].
D (保存|记录|写)(笔记|备忘)
s text! title tags
q (Take|Make|Save|Write) a note[ titled {title}](: | saying | that says ){text}[ with tags {tags}]
q (Note down|Write down|Jot down) {text}
Q (记一条笔记|记下来|写个备忘|保存笔记)[，标题{title}]：{text}
Q (记录|记一下){text}
r status
# order_status : order_status order purchase_status : get check query : Orders/订单查询
d (Check|Get|Look up) the (status|state) of an order.
D (查询|查看)订单(状态|情况)
s order!
q (Where is|What about|What happened to) my order {order}?
q (Check|What is|Tell me|Get) the status of order {order}[ please]
q (Has|Was) order {order} (shipped|been sent|delivered)[ yet]?
Q (订单|我的订单){order}(到哪了|发货了吗|是什么状态|的状态)？
Q (查一下|查询|看看)订单{order}
r status=state
# order_cancel : order purchase_order : cancel stop revoke : Cancel Order/取消订单
d Cancel an order[ that was placed].
D 取消(订单|已下的订单)
s order! text
q Cancel[ my| the] order {order}[, the reason is {text}]
q (I want to cancel|Please stop|I no longer need) order {order}
Q (取消|帮我取消|我要取消)订单{order}[，原因是{text}]
r status
# refund : refund money_back reimbursement : request ask issue : Refund/退款
d (Request|Issue) a refund[ for an order].
D (申请|办理)退款
s order! amount
q (Refund|I want a refund for|I want my money back for) order {order}[, {amount} dollars]
q (Request|Get) a refund[ of {amount} dollars] for order {order}
Q (申请|办理)订单{order}的退款[，金额{amount}元]
Q 订单{order}(我要退款|请退款)[，{amount}元]
r status
# package : package parcel shipment delivery : track find locate : Parcel Tracking/快递查询
d Track a (package|parcel|shipment)[ by its tracking number].
D (查询|跟踪)(快递|包裹|物流)
s tracking!
q (Track|Find|Locate) (the package|my parcel|shipment|the parcel) {tracking}
q Where is (the package|my parcel|shipment) {tracking}[ now]?
Q (快递|包裹){tracking}(到哪了|在哪里|的物流信息)？
Q (查快递|跟踪包裹|查一下包裹){tracking}
r status=state location=city
# buy : purchase product_order buy_product cart : buy place make : Shop/购物
d (Buy|Order) a product[ in some quantity].
D (购买|订购)商品
s product! quantity! gift_wrap
q (Buy|Order|Purchase|Get me) {quantity} (of the |units of |){product}[ and wrap it as a gift{gift_wrap=true}]
q I (want|would like) to (buy|order) {product}, quantity {quantity}
Q (购买|买|订购){quantity}(个|件|台){product}[，要礼品包装{gift_wrap=true}]
Q 我(想|要)买{product}，数量{quantity}
r status
# product_search : products product_search shop_search catalog : search find browse : Product Search/商品搜索
d (Search|Find) products in the (shop|store|catalog).
D (搜索|查找)(商品|产品)
s product! price sort color
q (Find|Search for|Show me)[ a] {color} {product}[ under {price} dollars][ sorted by {sort}]
q (Which|What) {product} can I (buy|get)[ for {price} dollars]?
q (Look for|Find) {product} in the (shop|store)[ below {price} dollars][, sort by {sort}]
Q (搜索|找|查找)[{color}的]{product}(商品|产品|)[，价格不超过{price}元][，按{sort}排序]
r list
# price : price product_price item_price cost : get check find : Price/价格查询
d (Get|Check) the price of a product.
D (查询|获取)商品(价格|售价)
s product!
q (How much|What) does (the|a) {product} cost?
q (What's|Check|Tell me) the price of (the|a) {product}[?]
Q {product}(多少钱|的价格是多少|卖多少钱)？
Q (查一下|查询){product}的价格
r number
# movie_search : movies movie_finder films cinema : find search recommend : Movies/电影
d (Find|Recommend|Search) (movies|films)[ by genre and year].
D (推荐|搜索|查找)电影
s genre! year count
q (Recommend|Suggest|Find)[ me] (a|some|{count}) {genre} (movie|movies|film|films)[ from {year}]
q (What|Which) {genre} (movies|films) (from {year} |)(should I watch|are good)?
Q (推荐|找)[{count}部][{year}年的]{genre}(电影|片)
Q 有什么好看的{genre}(电影|片)？
r list
# book_search : books book library_books book_finder : find search : Books/图书
d (Find|Search) (books|a book) (by title or author|in the library).
D (搜索|查找)(图书|书籍)
s book! author
q (Find|Search for|Do you have) the book {book}[ by {author}]
q (Look for|Is there) a (book|novel) (called|titled) {book}[ by {author}]
Q (查找|搜索|有没有)(图书|书)《{book}》[，作者{author}]
r list
# recipe : recipe recipes cooking_recipe : get find show : Recipes/菜谱
d (Find|Get|Show) a recipe[ for a dish].
D (查找|获取)(菜谱|食谱|做法)
s dish! people
q (How do I|How to) (cook|make|prepare) {dish}[ for {people} people]?
q (Find|Give me|Show me) a recipe for {dish}[ for {people} people]
Q {dish}(怎么做|的做法|如何做|的菜谱)？
Q (教我做|给我一个菜谱：){dish}[，{people}人份]
r text
# calories : calories nutrition food_energy : get count lookup : Nutrition/营养
d (Get|Look up) the (calories|nutrition facts) of a food.
D (查询|获取)食物的(热量|卡路里|营养)
s dish! weight
q How many calories (are in|does|has) {dish}[ have]?
q (What is the nutrition of|How healthy is) {dish}?
Q {dish}(有多少卡路里|的热量是多少|有多少热量)？
r number
# unit_convert : units unit_converter measurement : convert change transform : Unit Converter/单位换算
d Convert (a value|measurements) (between units|from one unit to another).
D (单位换算|把数值换算成其他单位)
s amount! from_unit! to_unit!
q (Convert|Change) {amount} {from_unit} (to|into) {to_unit}
q How many {to_unit} are (in |){amount} {from_unit}?
q What is {amount} {from_unit} in {to_unit}?
Q (把|将){amount}{from_unit}(换算成|换成|转换为){to_unit}
Q {amount}{from_unit}(是多少|等于多少){to_unit}？
r number
# bmi : bmi body_mass_index health_index : calculate compute get : BMI/体重指数
d (Calculate|Compute) the body mass index[ (BMI)].
D 计算(身体质量指数|BMI)
s weight! height!
q (What is|Calculate|Compute) (my|the) BMI (with|for|if I weigh) {weight} kg and {height} cm
q I am {height} cm tall and weigh {weight} kg. (What is my BMI|Calculate my BMI)?
Q (我|)身高{height}厘米，体重{weight}公斤，(BMI是多少|计算BMI)
Q 计算BMI：体重{weight}公斤，身高{height}厘米
r number
# image : image picture drawing art painting : generate create draw make : Image Generator/图像生成
d (Generate|Create|Draw) (an image|a picture|art)[ from a text description].
D (AI绘画|图像生成|根据文字描述生成图片)
s prompt! style color
q (Draw|Paint|Generate|Create)( a picture of| an image of|) {prompt}[ in {style} style]
q (Make|I want) (a picture|an image) (of|showing) {prompt}[, {style}]
Q (画|画一张|生成一张|帮我画){prompt}[的图片][，{style}风格]
r url
# file_read : file_content file text_file : read open load show : Read File/读取文件
d (Read|Open|Load) (a file|the content of a file)[ and return it].
D (读取|打开)文件(内容|)
s file!
q (Read|Open|Show me|Load)( the file|) {file}
q (What is in|What does) (the file |){file}[ say]?
Q (读取|打开|查看)(文件|){file}[的内容]
Q (文件|){file}里(有什么|写了什么)？
r text
# file_delete : file files document : delete remove erase : Delete File/删除文件
d (Delete|Remove|Erase) a file.
D (删除|移除)文件
s file!
q (Delete|Remove|Erase)( the file|) {file}[ please]
q (I don't need|Get rid of) (the file |){file}[ any more]
Q (删除|删掉|移除)(文件|){file}
r status
# file_move : file document files : rename move copy : Move File/移动文件
d (Rename|Move|Copy) a file.
D (重命名|移动)文件
s file! new_name!
q (Rename|Move)( the file|) {file} to {new_name}
Q (把|将)(文件|){file}(重命名为|移动到|改名为){new_name}
r status
# list_files : files directory folder_content : list show browse : List Files/文件列表
d List (the files|what is) in a (folder|directory).
D (列出|查看)(文件夹|目录)中的文件
s folder!
q (List|Show)[ me] (the files|what is|everything) in( the folder|) {folder}
q (Which|What) files are in {folder}?
Q (列出|查看)(目录|文件夹|){folder}(里|中)的文件
Q {folder}(目录|文件夹)里有哪些文件？
r list
# web_page : web_page page url website : open fetch visit browse : Browser/网页浏览
d (Open|Fetch|Visit) a web page[ and return its text].
D (打开|访问|抓取)网页(内容|)
s url!
q (Open|Visit|Go to|Fetch)( the page| the website|) {url}
q (What is on|What does|Read)( the page|) {url}[ say]
Q (打开|访问|抓取)(网页|网站|){url}
r text
# summarize : summary summarizer digest : make create get : Summarizer/摘要
d (Summarize|Shorten) (a page|an article)[ at an address].
D (总结|概括)(文章|网页)
s url! count language
q (Summarize|Give me a summary of|Sum up) {url}[ in {count} sentences][ in {language}]
Q (总结|概括|摘要)(一下|){url}[，用{count}句话][，用{language}]
r text
# database : database sql table_rows records : query read select : Database/数据库查询
d (Query|Read|Select) (rows|records) (of a table|from the database).
D (查询|读取)数据库(表|)
s table! count sort
q (Show|Get|Select|Fetch)[ me] [{count} ](rows|records) (from|of) (the table |){table}[ ordered by {sort}| sorted by {sort}]
q (Query|Read) the (database table|table) {table}[, {count} rows]
Q (查询|读取)(数据表|表|){table}[的{count}条记录][，按{sort}排序]
r list
# user_create : user account member profile : create register add new : Create User/创建用户
d (Create|Register|Add) a (user|account|member).
D (创建|注册|新建)(用户|账号)
s user! email age
q (Create|Register|Add) (a user|an account|a new user)( called| named|) {user}[ with (email|mail) {email}][, age {age}]
q (Sign up|Make an account for) {user}[ with the address {email}]
Q (创建|注册)(用户|账号){user}[，邮箱{email}][，年龄{age}]
r status
# user_info : user profile account_info member : get lookup show : User Info/用户信息
d (Get|Look up|Show) (the profile|information|details) of a user.
D (查询|获取)用户(信息|资料)
s user!
q (Who is|Show me|Get) (the user|the profile of|user) {user}
q (Look up|What do we know about) (user|the account) {user}
Q (查询|查看|获取)用户{user}的(资料|信息)
r name=person age=int
# password : password password_generator secret : generate create make : Password/密码生成
d (Generate|Create) a (random|safe|secure) password.
D (生成|创建)(随机|安全)密码
s count!
q (Generate|Make|Give me|Create) a[ safe| random| secure] password (with|of) {count} characters
q I need a password that is {count} characters long
Q (生成|创建|给我)(一个|){count}位的(随机|)密码
r ident
# ping : ping server_status host_check : ping check test : Ping/网络检测
d (Check|Test) (whether|if) a (host|server) (is up|answers|can be reached).
D (检测|测试)(主机|服务器)是否(在线|可达)
s host!
q (Ping|Test|Check)( the server| the host|) {host}
q Is (the server |){host} (up|online|reachable|down)?
Q (检测|测试|ping)(一下|)(服务器|主机|){host}
Q (服务器|主机){host}在线吗？
r status
# deploy : deployment release deploy app_release : deploy run start trigger : Deploy/部署
d Deploy (a version of|) (an app|a service).
D 部署(应用|服务)
s host! ident!
q Deploy (version |){ident} (to|on) (the server |){host}
q (Roll out|Release) {ident} on {host}
Q (把|将)(版本|){ident}部署到{host}
r status
# ticket : ticket support_ticket issue bug : create open file report : Support Ticket/工单
d (Open|Create|File) a (support ticket|bug report|ticket).
D (创建|提交)(工单|问题单)
s title! priority text
q (Open|Create|File) a (ticket|support ticket|bug report) (about|for|titled) {title}[ with {priority} priority]
q (Report|There is) (a problem|a bug|an issue)(: | called ){title}[, priority {priority}]
Q (创建|提交|新建)(工单|问题单)[，标题]：{title}[，优先级{priority}]
r ident
# appointment : doctor_appointment clinic_visit medical_appointment : book make schedule : Clinic/预约挂号
d (Book|Make|Schedule) an appointment with a doctor.
D (预约|挂号)(医生|就诊)
s doctor! date! time
q (Book|Make|Schedule) an appointment with (doctor|Dr.) {doctor} on {date}[ at {time}]
q I (need|want) to see doctor {doctor} on {date}[ at {time}]
Q (预约|挂号|挂){doctor}医生，(日期|时间){date}[ {time}]
Q 我(想|要){date}(看|约){doctor}医生
r status
# medicine : medicine drug medication drug_info : lookup find get : Medicine/药品
d (Look up|Find|Get) (information about|facts on) a (medicine|drug).
D (查询|获取)药品(信息|说明)
s word!
q What are the side effects of (the drug |the medicine |){word}?
q (Look up|Tell me about|Find) the (medicine|drug|medication) {word}
Q (药品|药物){word}(有什么副作用|怎么吃|的说明)？
Q (查询|查一下)(药品|药物){word}
r text
# workout : workout exercise training_log activity : log record save : Workout Log/运动记录
d (Log|Record|Save) a workout[ or exercise].
D 记录(运动|锻炼|健身)
s word! minutes! level
q (Log|Record|Save) {minutes} minutes of {word}
q I did {word} for {minutes} minutes, (log|record) (it|that)
Q (记录|保存)(运动|锻炼)：{word}{minutes}分钟
r status
# time_zone : time current_time world_clock time_zone : get check tell : World Clock/世界时钟
d (Get|Tell|Check) the (current|local) time in a city.
D (查询|获取)(某个城市|各地)的(当前|当地)时间
s city!
q What time is it in {city}[ now| right now]?
q (Tell me|Check|What is) the (local|current) time in {city}
Q {city}(现在几点|当地时间是几点|现在是什么时间)？
Q (查一下|告诉我){city}的(当前|当地)时间
r clock
# holiday : holidays holiday public_holidays : list get show : Holidays/节假日
d (List|Get) (the public holidays|holidays) of a country[ in a year].
D (查询|列出)(国家|某国)的(节假日|公共假期)
s country! year
q (Which|What) (are the |)(public holidays|holidays) (in|of|does) {country}[ have][ in {year}]?
q (List|Show me) the holidays (in|of) {country}[ for {year}]
Q {country}[{year}年](有哪些|的)(节假日|公共假期)？
r list
# population : population population_data inhabitants : get lookup find : Population/人口
d (Get|Look up) the (population|number of inhabitants) of a (country|place).
D (查询|获取)(国家|地区)人口
s country! year
q (How many people live|What is the population) (in|of) {country}[ in {year}]?
q (Get|Tell me) the population of {country}[ for {year}]
Q {country}[{year}年]有多少人口？
Q (查询|查一下){country}[{year}年]的人口
r number
# quiz : quiz question trivia test_maker : generate make create : Quiz/出题
d (Generate|Make|Create) (quiz|trivia|test) questions[ on a topic].
D (生成|出)(测验题|题目|试题)
s topic! count level
q (Make|Generate|Create|Give me) a quiz (about|on) {topic}[ with {count} questions]
q Ask me {count} (questions|trivia questions) about {topic}
Q (出|生成){count}道关于{topic}的(题目|试题)
Q 关于{topic}(出个测验|考考我)[，{count}道题]
r list
# dice : dice dice_roller random_dice : roll throw cast : Dice/掷骰子
d (Roll|Throw) dice[ and return the numbers].
D 掷骰子
s count! quantity
q (Roll|Throw) {count} dice[ with {quantity} sides]
q (Roll the dice|Throw a die) {count} times
Q 掷{count}(个|次)骰子[，{quantity}面]
r number
# random_number : random_number random number_picker : generate pick get : Random Number/随机数
d (Generate|Pick|Get) a random number.
D (生成|产生)随机数
s from:count! to:quantity!
q (Pick|Give me|Generate|Choose) a random number (between {from} and {to}|from {from} to {to})
Q (生成|给我)(一个|){from}到{to}之间的随机数
r number
# vote : poll vote survey : create start open : Poll/投票
d (Create|Start) a (poll|vote|survey) with options.
D (创建|发起)投票
s title! items!
q (Create|Start) a (poll|vote) (called|about|titled) {title} with (the options|options) {items}
Q (创建|发起)投票：{title}，选项(有|为){items}
r status
# group_message : group_message broadcast announcement team_message : send post make : Broadcast/群发
d (Send|Post) a message to (several people|a group).
D (给多人|向一组人)(群发|发送)(消息|通知)
s names! message! urgent
q (Tell|Send to|Message) {names}(: | the message | at once: ){message}[, it is urgent{urgent=true}]
q (Broadcast|Post) {message} to {names}[ as urgent{urgent=true}]
Q (群发|发消息)给{names}：{message}[，加急{urgent=true}]
Q (通知|告诉){names}：{message}
r status
# statistics : statistics average mean stats : calculate compute get : Statistics/统计
d (Calculate|Compute) (the average|statistics|the mean) of (some|a list of) numbers.
D 计算一组数字的(平均值|统计量)
s numbers!
q (What is|Calculate|Compute|Find) the (average|mean|statistics) of {numbers}
q (Take|Average) the numbers {numbers}[ and give me the mean]
Q (计算|求|算一下){numbers}的(平均值|平均数|均值)
r number
# compare_cities : city_comparison compare_cities cities : compare rank : City Comparison/城市比较
d Compare (several|two or more) cities[ by cost, size and so on].
D 比较(多个|几个)城市
s cities! topic
q (Compare|Rank) (the cities |){cities}[ by {topic}]
q (How do|Which is better:) {cities}[ compare]?
Q (比较|对比)(一下|){cities}[，看{topic}]
r text
# address_update : address shipping_address customer_address : update change set : Address/地址
d (Update|Change) the (shipping|delivery|home) address[ of a user].
D (更新|修改)(收货|送货|)地址
s user! address.city! address.phone
q (Change|Update|Set) the address of {user} to {address.city}[ with phone {address.phone}]
q {user} moved to {address.city}, update the address[, phone {address.phone}]
Q (把|将)(用户|){user}的地址(改为|更新为|改成){address.city}[，电话{address.phone}]
r status
# booking_nested : trip travel_booking journey vacation : book plan create : Trip Planner/行程预订
d (Book|Plan) a (trip|vacation) for a traveller.
D (预订|规划)(行程|旅行)
s traveler.person! traveler.age trip.to_city! trip.start_date
q (Book|Plan) a (trip|vacation|journey) to {trip.to_city} for {traveler.person}[, aged {traveler.age}][, starting {trip.start_date}]
q {traveler.person}[ (who is {traveler.age})] wants to (travel|go) to {trip.to_city}[ from {trip.start_date}]. (Book|Plan) it.
Q (为|给){traveler.person}(预订|安排)去{trip.to_city}的(行程|旅行)[，出发日期{trip.start_date}][，年龄{traveler.age}]
r status
# coffee : coffee drink beverage coffee_order : order make prepare brew : Coffee/咖啡
d (Order|Make|Prepare) a (coffee|drink|hot drink).
D (点|制作)(咖啡|饮料)
s item! size quantity
q (Order|Make|Get)[ me] a {size} {item}
q (I'd like|Could I have) a {size} {item}, please
q (Brew|Prepare) {quantity} {size} {item}
Q (来|点|要)一杯{size}{item}
Q 我想(喝|要)一杯{size}的{item}
r status
# paint : paint wall_paint color_mixer : mix choose blend : Paint Mixer/调色
d Mix (paint|colors)[ into a new one].
D (混合|调配)颜色
s colors!
q (Mix|Blend) {colors}[ paint][ together]
q What do you get (from|when you mix) {colors}?
Q (混合|调配){colors}
r color
# pet : pet_adoption animal_shelter pets : find search adopt : Pet Shelter/宠物领养
d (Find|Search) (pets|animals) (for adoption|in shelters).
D (查找|搜索)(可领养的|)宠物
s animal! city
q (I want to adopt|Find me|Is there) a {animal}[ (near|in) {city}]
q (Which|Are there) {animal} (for adoption|looking for a home)[ in {city}]?
Q (我想|帮我)领养(一只|){animal}[，在{city}]
r list
# log_search : logs log_search server_logs : search read grep find : Log Search/日志搜索
d (Search|Read) the logs of a (server|service).
D (搜索|查看)(服务器|系统)日志
s host! query! count
q (Search|Grep) the logs of {host} for {query}[, {count} lines]
q (Find|Show) {query} in the logs of {host}[, at most {count} lines]
Q (在|搜索){host}的日志(中|里)(查找|搜索|找){query}[，{count}行]
r list
# invoice : invoice bill receipt : create issue make send : Invoice/发票
d (Create|Issue|Make) an invoice[ for a customer].
D (开具|创建)发票
s company! amount! date
q (Create|Issue|Make) an invoice (for|to) {company} (over|of|for) {amount}[ dollars][, dated {date}]
q (Bill|Invoice) {company} {amount}[ dollars][ on {date}]
Q (给|为|向){company}开(一张|){amount}元的发票[，日期{date}]
r ident
# transfer : transfer money_transfer payment bank_transfer : make send do : Bank Transfer/转账
d (Transfer|Send|Pay) money to (somebody|a person).
D (转账|付款|汇款)(给他人|)
s recipient! amount! text
q (Transfer|Send|Pay) {amount} (dollars|euros|) to {recipient}[ for {text}]
q (Pay|Send) {recipient} {amount}[ dollars][ with the note {text}]
Q (给|向|转给){recipient}(转账|转|汇款|付款){amount}元[，备注{text}]
r status
# balance : balance account_balance bank_balance : get check show : Bank Balance/余额
d (Get|Check|Show) the balance of (an|a bank) account.
D (查询|查看)(账户|银行卡)余额
s ident!
q (How much money is|What is the balance) (in|on|of) account {ident}?
q (Check|Show) the balance of (the account |){ident}
Q (账户|银行卡){ident}(还有多少钱|的余额是多少)？
Q (查询|查一下)(账户|银行卡){ident}的余额
r number
# review : review rating feedback product_review : post write submit : Reviews/评价
d (Post|Write|Submit) a review[ with a rating].
D (发表|提交)评价
s product! rating! text
q (Give|Rate) (the |){product} {rating} (stars|points)[ and write {text}]
q (Post|Write|Submit) a review of the {product} with {rating} stars[ saying {text}]
Q (给|为){product}(打|评){rating}分[，评价{text}]
r status
"""

# Domains that only the evaluation uses, chosen to be of different kinds.
HELD_OUT_DOMAINS = frozenset(
    (
        "holiday taxi recipe package summarize alarm bmi "
        "transfer log_search playlist user_info coffee flight_status review"
    ).split()
)


@dataclass
class Domain:
    """One purpose of a tool."""

    key: str
    nouns: list[str]
    verbs: list[str]
    human: str
    human_zh: str
    slots: list[str] = field(default_factory=list)
    result: str = "text"
    lines: dict[str, list[str]] = field(default_factory=lambda: {"d": [], "D": [], "q": [], "Q": []})

    def slot_map(self) -> dict[str, tuple[str, bool]]:
        """Template name -> (slot key, required). `from:count!` names a slot otherwise than its key."""
        found = {}
        for item in self.slots:
            name, _, key = item.rstrip("!").partition(":")
            found[name] = (key or name.split(".")[-1], item.endswith("!"))
        return found


@cache
def all_domains() -> dict[str, Domain]:
    """The table, by key."""
    domains: dict[str, Domain] = {}
    for line in (TABLE + domains_more.TABLE).split("\n"):
        mark, _, rest = line.partition(" ")
        if not rest:
            continue
        if mark == "#":
            key, nouns, verbs, human = (p.strip() for p in rest.split(" : "))
            english, _, chinese = human.partition("/")
            domain = domains[key] = Domain(key, nouns.split(), verbs.split(), english, chinese)
        elif mark == "s":
            domain.slots = rest.split()
        elif mark == "r":
            domain.result = rest
        else:
            domain.lines[mark].append(rest)
    return domains
