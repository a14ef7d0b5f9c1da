# ruff: noqa: E501 (tables of words read best in long lines)
"""The kinds of arguments as a table, read by slots.py.

A line is `key | kind | names | descriptions | Chinese descriptions`. `slots.make_value` knows the kinds; `enum` kinds
list `value~English words~Chinese words`.
"""

from __future__ import annotations

TABLE = """
city | city | city location place town city_name | The city[ name]. ; Name of the city. ; The city( to look up| in question|, e.g. Boston). | 城市名称 ; 要查询的城市 ; 城市
place | place | place location address venue spot | The place. ; Name( or address|) of the place. | 地点 ; 地址
country | country | country nation country_name region | The country[ name]. ; Name of the country. | 国家 ; 国家名称
person | person | name person person_name contact full_name who | The person's name. ; Name of the person. ; Full name. | 姓名 ; 人名 ; 联系人姓名
recipient | person | recipient to receiver contact send_to | Who (receives|gets) it. ; The recipient's name. | 收件人 ; 接收人姓名
author | person | author writer creator by | The author[ name]. ; Who wrote it. | 作者 ; 作者姓名
artist | person | artist singer musician performer | The artist[ name]. ; Name of the singer. | 歌手 ; 艺术家姓名
doctor | person | doctor physician specialist dentist | Name of the doctor. ; The doctor to see. | 医生姓名 ; 预约的医生
user | username | user username user_id account login handle | The user[name]. ; Account of the user. | 用户名 ; 用户账号
email | email | email to recipient address email_address | Email address[ of the recipient]. ; Where to send it. | 邮箱地址 ; 收件人邮箱
phone | phone | phone phone_number number to mobile tel | The phone number. ; Number to (call|reach). | 电话号码 ; 手机号
date | date | date day when on_date | The date[ (YYYY-MM-DD)]. ; Date in YYYY-MM-DD[ format]. | 日期 ; 日期，格式为YYYY-MM-DD
start_date | date | start_date from_date start check_in begin since | Start date. ; First day. ; When it begins. | 开始日期 ; 起始日期
end_date | date | end_date to_date end check_out until | End date. ; Last day. ; When it ends. | 结束日期 ; 截止日期
time | clock | time at start_time hour when clock_time | Time of day. ; The time (HH:MM). ; At what time. | 时间 ; 时间，格式为HH:MM
weekday | weekday | day weekday day_of_week | Day of the week. ; Which weekday. | 星期几
days | int:2:14 | days num_days forecast_days day_count duration_days | Number of days. ; How many days. | 天数 ; 几天
nights | int:2:14 | nights num_nights stay_length | Number of nights. ; How many nights. | 晚数 ; 住几晚
minutes | int:2:90 | minutes duration length_minutes mins duration_min | (Duration|Length) in minutes. ; How many minutes. | 分钟数 ; 时长（分钟）
hours | int:2:24 | hours num_hours duration_hours | Number of hours. ; How many hours. | 小时数
people | int:2:12 | people guests party_size num_people seats persons | Number of (people|guests). ; How many people. | 人数 ; 几个人
count | int:2:30 | count limit n num_results max_results top_k amount quantity | How many. ; Number of (results|items). ; Maximum number. | 数量 ; 结果数量
quantity | int:2:60 | quantity qty amount units count num_items | How many. ; The quantity. ; Number of units. | 数量 ; 件数
page | int:2:40 | page page_number page_no | Page number. ; Which page. | 页码
year | int:1950:2030 | year release_year in_year | The year. ; Which year. | 年份
age | int:5:90 | age years_old | Age in years. ; How old. | 年龄
amount | decimal | amount value sum quantity number | The amount. ; How much. ; Value to (use|convert). | 金额 ; 数值 ; 数量
price | decimal | price max_price budget limit cost | The price. ; Maximum price. ; Price limit. | 价格 ; 最高价格 ; 预算
weight | decimal | weight kg weight_kg mass | Weight in kilograms. ; The weight. | 体重（公斤） ; 重量
height | int:120:210 | height height_cm cm tall | Height in centimeters. ; The height. | 身高（厘米）
percent | int:2:99 | percent percentage rate level | Percentage[ from 0 to 100]. ; In percent. | 百分比 ; 百分数
temperature | int:14:30 | temperature degrees temp target target_temp | (Target|Desired) temperature. ; Degrees. | 温度 ; 目标温度
level | int:2:99 | level volume brightness value setting | Level[ from 0 to 100]. ; The new level. | 级别 ; 数值0到100
rating | int:2:10 | rating score stars points | The rating. ; Score[ from 1 to 10]. | 评分 ; 分数
from_city | city | origin from_city from departure source start | Where the trip starts. ; Departure city. ; City of departure. | 出发城市 ; 出发地
to_city | city | destination to_city to arrival target end | Where the trip ends. ; Destination[ city]. ; City of arrival. | 目的地 ; 到达城市
from_currency | currency | from_currency source base from base_currency | Currency to convert from. ; Source currency[ code]. | 原货币代码 ; 源货币
to_currency | currency | to_currency target to quote target_currency | Currency to convert to. ; Target currency[ code]. | 目标货币代码 ; 目标货币
language | language | language target_language to_language lang target_lang | Target language. ; Language to translate into. | 目标语言 ; 语言
query | topic | query q search_query keyword keywords search_term text | (Search|The) query. ; What to search for. ; Keywords. | 搜索关键词 ; 查询内容 ; 搜索关键词或短语
topic | topic | topic subject theme about category | The topic. ; What it is about. ; Subject of interest. | 主题 ; 话题
title | phrase | title name subject heading label summary | The title. ; Short title. ; Name of the entry. | 标题 ; 名称
text | quoted | text content message body note msg | The text. ; Content. ; What to (say|write). | 文本内容 ; 内容 ; 正文
message | quoted | message text body content msg | The message. ; Text of the message. ; What to send. | 消息内容 ; 信息正文
word | word | word term text entry vocab | The word. ; Word to look up. | 单词 ; 要查询的词
item | good | item product thing item_name goods | The item. ; Name of the item. | 物品 ; 商品名称
product | product | product item product_name goods query | The product. ; Product to (find|buy). ; Name of the product. | 产品 ; 商品名称
dish | dish | dish food recipe dish_name meal | The dish. ; Name of the dish. | 菜名 ; 菜品
cuisine | enum:Italian~Italian~意大利菜,Chinese~Chinese~中餐,Mexican~Mexican~墨西哥菜,Indian~Indian~印度菜,Thai~Thai~泰国菜,French~French~法国菜,Japanese~Japanese~日本料理 | cuisine food_type style kitchen | Kind of food. ; Cuisine. | 菜系 ; 口味
items | goods | items products list entries things shopping_list | List of items. ; The items[ to add]. | 物品列表 ; 商品清单
names | people | names people attendees participants members invitees | List of names. ; Who takes part. | 人员名单 ; 参加者
cities | cities | cities places locations stops | List of cities. ; The cities[ to compare]. | 城市列表
tags | tagwords | tags labels keywords categories | List of tags. ; Labels. | 标签列表 ; 标签
numbers | numbers | numbers values data list series | List of numbers. ; The numbers. | 数字列表 ; 一组数字
colors | color_list | colors palette colours | List of colors. | 颜色列表
room | room | room area location zone room_name | The room. ; Which room. | 房间 ; 房间名称
device | device | device appliance device_name target | The device. ; Which device. | 设备 ; 设备名称
color | color | color colour shade paint | The color. ; Which color. | 颜色
animal | animal | animal species pet kind | The animal. ; Which animal. | 动物
song | song | song track title song_name music | The song. ; Song to play. ; Name of the song. | 歌曲名称 ; 歌名
movie | phrase | movie film title movie_title | The movie. ; Title of the movie. | 电影名称 ; 片名
book | phrase | book title book_title | The book. ; Title of the book. | 书名 ; 书籍名称
company | company | company company_name business firm | The company. ; Company name. | 公司名称 ; 公司
symbol | ticker | symbol ticker stock code stock_symbol | Stock symbol. ; Ticker[ of the stock]. | 股票代码
order | ident | order_id order order_number id number | The order (number|ID). ; ID of the order. | 订单号 ; 订单编号
ident | ident | id code reference key record_id identifier number | The (ID|code). ; Identifier. ; Reference number. | 编号 ; 代码
tracking | ident | tracking_number tracking_id package_id parcel number | Tracking number. ; Number of the parcel. | 快递单号 ; 运单号
flight | flightno | flight flight_number flight_no number code | Flight number. ; The flight. | 航班号
file | path | file path filename file_path document | The file. ; Path of the file. ; File name. | 文件路径 ; 文件名
folder | folder | folder directory path dir | The folder. ; Directory. | 文件夹 ; 目录
new_name | path | new_name target destination new_path to | New name. ; Where it goes. | 新名称 ; 目标路径
url | url | url link address page website | The URL. ; Address of the page. ; Link. | 网址 ; 链接
expression | expression | expression formula query input calc | (Math|Arithmetic) expression. ; What to (compute|calculate). | 数学表达式 ; 算式
prompt | topic | prompt description query image_prompt text | What to draw. ; Description of the picture. | 图像描述 ; 画面描述
table | tableword | table table_name collection dataset | The table. ; Name of the table. | 表名 ; 数据表
host | host | host server hostname machine ip | The host. ; Server name. | 主机名 ; 服务器
unit | enum:celsius~Celsius~摄氏度,fahrenheit~Fahrenheit~华氏度 | unit units scale temperature_unit | Temperature unit. ; Unit. | 温度单位
from_unit | unit | from_unit source_unit unit from | Unit to convert from. ; Source unit. | 原单位
to_unit | unit | to_unit target_unit to into | Unit to convert to. ; Target unit. | 目标单位
priority | enum:low~low~低,medium~medium~中,high~high~高,urgent~urgent~紧急 | priority urgency importance level | How urgent. ; Priority. | 优先级 ; 紧急程度
size | enum:small~small~小杯,medium~medium~中杯,large~large~大杯 | size cup_size portion | The size. ; Cup size. | 大小 ; 杯型
sort | enum:price~price~价格,rating~rating~评分,date~date~日期,distance~distance~距离 | sort_by sort order_by order | How to sort[ the results]. ; Sort field. | 排序方式
mode | enum:car~car~开车,bus~bus~公交车,train~train~火车,bike~bike~自行车,walk~foot~步行 | mode transport travel_mode by vehicle | Means of transport. ; How to travel. | 出行方式 ; 交通方式
state | enum:on~on~打开,off~off~关闭 | state action power switch status | On or off. ; New state. | 开关状态
cabin | enum:economy~economy~经济舱,business~business~商务舱,first~first~头等舱 | cabin class seat_class travel_class | Class of travel. ; Cabin. | 舱位
genre | enum:comedy~comedy~喜剧,horror~horror~恐怖,drama~drama~剧情,action~action~动作,romance~romance~爱情 | genre category kind style | The genre. ; What kind. | 类型 ; 题材
style | enum:cartoon~cartoon~卡通,realistic~realistic~写实,watercolor~watercolor~水彩,sketch~sketch~素描 | style art_style look | Art style. ; The style. | 画风 ; 风格
format | enum:pdf~PDF~PDF,csv~CSV~CSV,json~JSON~JSON,png~PNG~PNG | format output_format file_type type | Output format. ; File type. | 输出格式 ; 文件格式
period | enum:day~day~天,week~week~周,month~month~月,year~year~年 | period range interval timeframe | Time span. ; Which period. | 时间范围
notify | bool | notify send_notification alert notify_all | Whether to (notify|tell) people. ; Send a notification. | 是否通知
repeat | bool | repeat recurring daily every_day | Whether it repeats. ; Repeat every day. | 是否重复
urgent | bool | urgent is_urgent express rush | Whether it is urgent. ; Urgent or not. | 是否紧急 ; 是否加急
gift_wrap | bool | gift_wrap wrap is_gift gift | Whether to wrap it as a gift. | 是否礼品包装
"""
